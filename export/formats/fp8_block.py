"""Linear layers stored as the vendor stores FP8: E4M3 with one scale per 128 x 128 block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from deltart.export import ops
from deltart.plugins.fp8_linear.reference import BLOCK

# The linears that the vendor quantizes. Those of one group read the same input, and runtimes fuse them into one
# matrix, so a group is quantized as a whole or not at all.
GROUPS = (
    ("in_proj_qkv", "in_proj_z"),
    ("out_proj",),
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
FUSED_EXPERTS = "gate_up_proj"  # of an unquantized sparse MLP; quantized it becomes gate_proj and up_proj of each


class Fp8BlockLinear(nn.Module):
    """y = x (weight * scale)^T; edge blocks may be partial.

    Args:
        scale: what the checkpoint calls a weight's scales; compressed-tensors' are `weight_scale`.

    `quantize_activations` makes it W8A8: x is rounded to E4M3 per token and 128 of K.
    """

    quantize_activations = False

    def __init__(self, in_features: int, out_features: int, scale: str = "weight_scale_inv") -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        blocks = [-(-size // BLOCK) for size in weight.shape]
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = scale
        self.register_parameter(scale, nn.Parameter(torch.empty(blocks), requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.get_parameter(self.scale)
        return ops.fp8_block_linear(x, self.weight, scale, int(self.quantize_activations))


def is_quantized(module: str) -> bool:
    """Whether the vendor quantizes the linear of this name."""
    leaf = module.rpartition(".")[2]
    return "visual" not in module and (leaf == FUSED_EXPERTS or any(leaf in group for group in GROUPS))


def quantization_config(kept: Iterable[str]) -> dict[str, Any]:
    """The block of config.json that declares the format; `kept` are the modules stored as they are."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted(kept),
    }
