"""Linear layers packed by compressed-tensors: symmetric int4, one scale per group of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deltart.errors import CheckpointError
from deltart.export import ops
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import CONVERT, FORMAT, GROUP_SIZES, METHOD, CompressedSpec, Int4Scheme
from deltart.export.regions import GROUPS, PACKED, PACKED_SCALE, PACKED_SHAPE


class Int4GroupLinear(nn.Module):
    """y = x W^T, W = (nibble - 8) * weight_scale. `weight_groups` are the bytes of the file's `weight_packed`."""

    def __init__(self, in_features: int, out_features: int, group_size: int) -> None:
        super().__init__()
        self.sizes = (in_features, out_features, group_size)
        groups = in_features // group_size
        packed = torch.empty(out_features, groups, group_size // 2, dtype=torch.uint8)
        self.weight_groups = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, groups), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = ops.int4_group_linear(x, self.weight_groups, self.weight_scale, *self.sizes)
        return y


def stored_group_size(
    checkpoint: Checkpoint, module: str, shape: tuple[int, int], spec: CompressedSpec | None
) -> int | None:
    """Values per group of the weight [out, in] that is packed as `module`; None where it is not packed.

    Raises:
        CheckpointError: its tensors are incomplete, of another shape or scheme, or contradict config.json.
    """
    packed = checkpoint.get(f"{module}.{PACKED}")
    if packed is None:
        return None
    for leaf, what in (("weight_zero_point", "asymmetric"), ("weight_g_idx", "ordered by activation")):
        if f"{module}.{leaf}" in checkpoint:
            raise CheckpointError(f"'{module}.{leaf}' is there: the weight is {what}", "symmetric groups", CONVERT)
    if spec is None:
        raise CheckpointError(
            f"'{packed.name}' is packed, but config.json has no quantization_config of {METHOD}",
            "one that says how",
            "restore it from where the checkpoint came from",
        )
    region = checkpoint.regions.get(f"{module}.{GROUPS}")
    if region is None or region.shape[0] != shape[0] or region.nbytes * 2 != shape[0] * shape[1]:
        raise CheckpointError(*_why_not(checkpoint, module, shape))
    _check_shape(checkpoint, module, shape)
    size = region.shape[2] * 2
    wanted = spec.scheme(module) if spec.groups else Int4Scheme(size)
    if wanted != Int4Scheme(size) or size not in GROUP_SIZES:
        raise CheckpointError(
            f"'{module}' is packed in groups of {size}",
            f"{wanted}, as config.json says" if wanted else "no packing: config.json leaves it as it is",
            "config.json and weights are of different quantizations",
        )
    return size


def group_config(group_size: int, ignore: tuple[str, ...]) -> dict[str, Any]:
    """The block of config.json that declares the format, for every linear but those of `ignore`."""
    weights: Mapping[str, Any] = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size,
        "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _why_not(checkpoint: Checkpoint, module: str, shape: tuple[int, int]) -> tuple[str, str, str]:
    packed, scale = checkpoint[f"{module}.{PACKED}"], checkpoint.get(f"{module}.{PACKED_SCALE}")
    if scale is None:
        return f"tensor '{module}.{PACKED_SCALE}' is missing", "a scale per group", "the checkpoint is incomplete"
    found = f"'{packed.name}' is {packed.dtype} {list(packed.shape)} with scales {list(scale.shape)}"
    expected = f"I32 [{shape[0]}, {shape[1] // 8}] and scales [{shape[0]}, {shape[1]} / group size]"
    if len(scale.shape) == 2 and scale.shape[0] == shape[0] and scale.shape[1] > 1 and shape[1] % scale.shape[1]:
        return found, expected, f"a last group that is shorter can't be bound: leave '{module}' unquantized"
    return found, expected, "config.json and weights are of different models or quantizations"


def _check_shape(checkpoint: Checkpoint, module: str, shape: tuple[int, int]) -> None:
    name = f"{module}.{PACKED_SHAPE}"
    info = checkpoint.get(name)
    if info is None or info.shape != (2,) or info.dtype not in ("I64", "I32"):
        found = f"tensor '{name}' is {f'{info.dtype} {list(info.shape)}' if info else 'missing'}"
        raise CheckpointError(found, "two integers", "the checkpoint is incomplete")
    stated = tuple(int(size) for size in checkpoint.read(name))
    if stated != shape:
        raise CheckpointError(f"'{name}' says {list(stated)}", f"{list(shape)}, as config.json implies")
