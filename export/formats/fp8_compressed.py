"""Linears that compressed-tensors stores in E4M3: by the vendor's blocks of 128 x 128, or with a scale per row."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from deltart.dtypes import E4M3
from deltart.errors import CheckpointError
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import BLOCK, CHANNEL, CompressedSpec, Fp8Scheme
from deltart.export.formats.fp8_block import Fp8BlockLinear
from deltart.export.regions import PACKED_SCALE as SCALE


class Fp8RowLinear(nn.Module):
    """y = (x weight^T) * weight_scale, a scale [out, 1] per row of the weight [out, in]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, 1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.to(x.dtype).flatten()


def fp8_linear(scheme: Fp8Scheme, in_features: int, out_features: int) -> nn.Module:
    """The module of a linear that is stored by `scheme`."""
    if scheme.strategy == CHANNEL:
        return Fp8RowLinear(in_features, out_features)
    return Fp8BlockLinear(in_features, out_features, SCALE)


def stored_fp8(checkpoint: Checkpoint, module: str, spec: CompressedSpec) -> Fp8Scheme | None:
    """How the FP8 weight of `module` is scaled; None where it is none.

    Raises:
        CheckpointError: its scale is missing, or config.json says something else of it.
    """
    weight = checkpoint.get(f"{module}.weight")
    if weight is None or weight.dtype != E4M3.stored:
        return None
    scale = checkpoint.get(f"{module}.{SCALE}")
    if scale is None:
        raise CheckpointError(
            f"tensor '{module}.{SCALE}' is missing", "the scales of an FP8 weight", "the checkpoint is incomplete"
        )
    if not spec.groups:
        return Fp8Scheme(CHANNEL if scale.shape == (weight.shape[0], 1) else BLOCK)
    scheme = spec.scheme(module)
    if not isinstance(scheme, Fp8Scheme):
        raise CheckpointError(
            f"'{weight.name}' is stored in FP8",
            f"{scheme}, as config.json says" if scheme else "no quantization: config.json leaves it as it is",
            "config.json and weights are of different quantizations",
        )
    return scheme
