"""What quantized linears are stored as: tensors, names, the block of config.json, and the module that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deltart.calib.grid import FP8_BLOCKS, Grid, int4_groups
from deltart.calib.scales import Quantized
from deltart.dtypes import E4M3, I32, I64
from deltart.export.checkpoint import Checkpoint
from deltart.export.formats import fp8_block, int4_group
from deltart.export.formats.fp8_block import Fp8BlockLinear
from deltart.export.formats.int4_group import Int4GroupLinear
from deltart.export.regions import GROUPS, PACKED, PACKED_SCALE, PACKED_SHAPE
from deltart.export.weights import load_tensor
from deltart.safetensors import TensorInfo, unplaced


class Format(Protocol):
    """A format of linears' weights.

    Attributes:
        name: for people, as "FP8".
        grid: the numbers.
        routed: whether routed experts can have it.
        activations: whether scales of an FP8 KV cache and of activations go with it.
        leaves: names of a module's tensors behind its own and a dot, the one of its values first.
    """

    name: str
    grid: Grid
    routed: bool
    activations: bool
    leaves: tuple[str, ...]

    def plan(self, weight: TensorInfo, scale_dtype: str) -> list[TensorInfo]:
        """What is stored for a weight [N, K], in the order of `leaves`."""

    def tensors(self, quantized: Quantized) -> list[Tensor]:
        """Their contents."""

    def load(self, checkpoint: Checkpoint, module: str) -> Quantized:
        """What a checkpoint of this format has of a module."""

    def linear(self, quantized: Quantized) -> nn.Module:
        """The layer that computes with it."""

    def config(self, kept: Iterable[str]) -> dict[str, Any]:
        """quantization_config, where modules `kept` stay as they are."""


class Fp8Blocks:
    """The vendor's: E4M3 and a scale per 128 x 128 block."""

    name, grid, routed, activations = "FP8", FP8_BLOCKS, True, True
    leaves: tuple[str, ...] = ("weight", "weight_scale_inv")

    def plan(self, weight: TensorInfo, scale_dtype: str) -> list[TensorInfo]:
        """See Format."""
        (rows, columns), (height, width) = weight.shape, self.grid.tile
        values = unplaced(weight.name, E4M3.stored, weight.shape)
        return [values, unplaced(f"{weight.name}_scale_inv", scale_dtype, (rows // height, columns // width))]

    def tensors(self, quantized: Quantized) -> list[Tensor]:
        """See Format."""
        return [quantized.weight, quantized.scale]

    def load(self, checkpoint: Checkpoint, module: str) -> Quantized:
        """See Format."""
        weight, scale = (load_tensor(checkpoint, f"{module}.{leaf}") for leaf in self.leaves)
        return Quantized(weight, scale)

    def linear(self, quantized: Quantized) -> nn.Module:
        """See Format."""
        with torch.device("meta"):
            linear = Fp8BlockLinear(*reversed(quantized.weight.shape))
        linear.weight = nn.Parameter(quantized.weight, requires_grad=False)
        linear.weight_scale_inv = nn.Parameter(quantized.scale, requires_grad=False)
        return linear

    def config(self, kept: Iterable[str]) -> dict[str, Any]:
        """See Format."""
        return fp8_block.quantization_config(kept)


class Int4Groups:
    """compressed-tensors' pack-quantized: symmetric int4, a scale per `size` values of a row."""

    routed = activations = False
    leaves: tuple[str, ...] = (PACKED, PACKED_SCALE, PACKED_SHAPE)

    def __init__(self, size: int) -> None:
        self.name, self.grid, self._size = f"INT4 in groups of {size}", int4_groups(size), size

    def plan(self, weight: TensorInfo, scale_dtype: str) -> list[TensorInfo]:
        """See Format."""
        module, (rows, columns) = weight.name.removesuffix(".weight"), weight.shape
        shapes = ((rows, columns // 8), (rows, columns // self._size), (2,))
        dtypes = (I32.stored, scale_dtype, I64.stored)
        stored = zip(self.leaves, dtypes, shapes, strict=True)
        return [unplaced(f"{module}.{leaf}", dtype, shape) for leaf, dtype, shape in stored]

    def tensors(self, quantized: Quantized) -> list[Tensor]:
        """See Format: eight values in a word, the lowest bits first, 8 standing for 0."""
        shape = torch.tensor(quantized.weight.shape)
        return [_packed(quantized.weight).view(torch.int32), quantized.scale, shape]

    def load(self, checkpoint: Checkpoint, module: str) -> Quantized:
        """See Format."""
        groups, scale = (load_tensor(checkpoint, f"{module}.{leaf}") for leaf in (GROUPS, PACKED_SCALE))
        nibbles = torch.stack([groups & 15, groups >> 4], -1).view(torch.int8).sub_(8)
        return Quantized(nibbles.view(len(groups), -1), scale, self.grid)

    def linear(self, quantized: Quantized) -> nn.Module:
        """See Format."""
        rows, columns = quantized.weight.shape
        with torch.device("meta"):
            linear = Int4GroupLinear(columns, rows, self._size)
        groups = _packed(quantized.weight).view(rows, columns // self._size, self._size // 2)
        linear.weight_groups = nn.Parameter(groups, requires_grad=False)
        linear.weight_scale = nn.Parameter(quantized.scale, requires_grad=False)
        return linear

    def config(self, kept: Iterable[str]) -> dict[str, Any]:
        """See Format."""
        return int4_group.group_config(self._size, tuple(kept))


FP8: Format = Fp8Blocks()


def _packed(codes: Tensor) -> Tensor:
    """Codes [N, K] of -8 to 7 as bytes [N, K/2], the even one in the low half."""
    pairs = (codes + 8).view(torch.uint8).view(len(codes), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4
