"""Linear layers stored as the vendor stores FP8: E4M3 with one scale per 128 x 128 block."""

from __future__ import annotations

import torch
from torch import nn

from deltart.export import ops
from deltart.plugins.fp8_block_linear.reference import BLOCK


class Fp8BlockLinear(nn.Module):
    """y = x (weight * weight_scale_inv)^T; edge blocks may be partial.

    `quantize_activations` makes it W8A8: x is rounded to E4M3 per token and 128 of K.
    """

    quantize_activations = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        blocks = [-(-size // BLOCK) for size in weight.shape]
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(torch.empty(blocks), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.fp8_block_linear(x, self.weight, self.weight_scale_inv, int(self.quantize_activations))
