"""Scales of a weight's tiles, by absmax or by search, and rounding against them. Scales multiply codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deltart.calib.grid import FP8_BLOCKS, Grid
from deltart.plugins.fp8_linear.reference import BLOCK

# Scales stay normal numbers, which no GPU flushes to zero, and 448 times a scale stays finite in BF16.
MIN_SCALE, MAX_SCALE = 2.0**-126, 145.0 * 2.0**112
STRIPE_ELEMENTS = 1 << 19  # work on stripes that stay in the cache


@dataclass(frozen=True)
class Quantized:
    """Codes [N, K] and a scale for each tile of them, in its stored dtype."""

    weight: Tensor
    scale: Tensor
    grid: Grid = FP8_BLOCKS

    def dequantized(self) -> Tensor:
        """The float32 values [N, K] that every consumer sees."""
        values = tiles(self.grid.decode(self.weight), self.grid)
        return values.mul_(self.scale.float()[:, None, :, None]).view(self.weight.shape)

    def rows(self, rows: slice) -> Quantized:
        """Whole tiles of rows."""
        return Quantized(self.weight[rows], self.scale[self.grid.scale_rows(rows)], self.grid)

    def over(self, unit: float) -> Quantized:
        """The same values in another unit, with float32 scales."""
        return Quantized(self.weight, self.scale.float() / unit, self.grid)


def joined(parts: list[Quantized]) -> Quantized:
    """Parts of whole tiles of rows as one."""
    return Quantized(torch.cat([p.weight for p in parts]), torch.cat([p.scale for p in parts]), parts[0].grid)


def tiles(weight: Tensor, grid: Grid) -> Tensor:
    """[N, K] as [N/rows, rows, K/columns, columns] of the grid's tiles, without a copy."""
    (rows, columns), (height, width) = weight.shape, grid.tile
    return weight.view(rows // height, height, columns // width, width)


@contextmanager
def one_thread() -> Iterator[None]:
    """One core keeps up with memory on elementwise work; waiting for the others can cost ten times as much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stripe_rows(weight: Tensor) -> int:
    """Height of the stripes to work in: whole blocks, about STRIPE_ELEMENTS elements."""
    return max(1, STRIPE_ELEMENTS // weight.shape[1] // BLOCK) * BLOCK


def stripes(weight: Tensor) -> Iterator[Tensor]:
    """Float32 copies of the weight's rows, stripe_rows at a time; the caller may change them."""
    return (stripe.to(torch.float32, copy=True) for stripe in weight.split(stripe_rows(weight)))


def absmax(weight: Tensor, scale_dtype: torch.dtype = torch.bfloat16, grid: Grid = FP8_BLOCKS) -> Quantized:
    """The convention of the format: scale = amax / span per tile.

    FP8 is rounded against the float32 scale, which is rounded to `scale_dtype` only when stored: values and float32
    scales equal those of transformers' own quantizer bit for bit, but for blocks below 2^-117, where its reciprocal
    overflows. Other formats are rounded against the stored scale: int4 equals compressed-tensors' own, in float32.

    Raises:
        ValueError: the weight holds inf or NaN.
    """
    values, scales = [], []
    for stripe in stripes(weight):
        amax, w = tile_amax(stripe, grid), tiles(stripe, grid)
        if grid.stored_first:
            scales.append(_stored(_of_amax(amax, grid), scale_dtype))
            codes = _codes(w, scales[-1].float(), grid)
        else:
            forward = (grid.span / amax).clamp(max=1 / MIN_SCALE).masked_fill(amax == 0, 1.0)
            scales.append(_stored(1.0 / forward, scale_dtype))
            codes = grid.encode(w.mul_(forward[:, None, :, None]))
        values.append(codes.view(stripe.shape))
    return Quantized(torch.cat(values), torch.cat(scales), grid)


def search(
    weight: Tensor, importance: Tensor | None, scale_dtype: torch.dtype = torch.bfloat16, grid: Grid = FP8_BLOCKS
) -> Quantized:
    """Per tile the scale of least squared error, values rounded against the stored scale.

    Args:
        importance: weight of each input's error [K], the inputs' second moments; all equal when None.

    Raises:
        ValueError: the weight holds inf or NaN.
    """
    scale = search_scale(weight, importance, scale_dtype, grid)
    return rounded(weight, scale, grid)


def search_scale(
    weight: Tensor, importance: Tensor | None, scale_dtype: torch.dtype = torch.bfloat16, grid: Grid = FP8_BLOCKS
) -> Tensor:
    """The scales that `search` finds, one a tile."""
    return torch.cat([best_scale(stripe, importance, grid, scale_dtype) for stripe in stripes(weight)])


def rounded(weight: Tensor, scale: Tensor, grid: Grid = FP8_BLOCKS) -> Quantized:
    """A weight against given scales."""
    height = stripe_rows(weight) // grid.tile[0]
    parts = zip(stripes(weight), scale.float().split(height), strict=True)
    codes = [_codes(tiles(stripe, grid), part, grid).view(stripe.shape) for stripe, part in parts]
    return Quantized(torch.cat(codes), scale, grid)


def best_scale(stripe: Tensor, importance: Tensor | None, grid: Grid, scale_dtype: torch.dtype) -> Tensor:
    """Scales of least squared error, of those that the grid's factors offer, for float32 rows [n, K].

    Among equals the smallest wins; an all-zero tile has scale 1, as with absmax.
    """
    w = tiles(stripe, grid)
    amax = tile_amax(stripe, grid)
    start = _of_amax(amax, grid)
    best, least = _stored(start, scale_dtype), torch.full_like(start, torch.inf)
    for factor in grid.factors:
        scale = _stored(torch.where(amax > 0, start * factor, 1.0), scale_dtype)
        s = scale.float()[:, None, :, None]
        error = (grid.decode(_codes(w, scale.float(), grid)).mul_(s).sub_(w) / start[:, None, :, None]).square_()
        if importance is not None:
            error *= importance.view(-1, grid.tile[1])
        total = error.sum((1, 3))
        best = torch.where(total < least, scale, best)
        least = torch.minimum(total, least)
    return best


def tile_amax(weight: Tensor, grid: Grid = FP8_BLOCKS) -> Tensor:
    """Largest |w| of each tile of float32 rows [n, K]. Raises ValueError for inf or NaN."""
    (rows, columns), (height, width) = weight.shape, grid.tile
    amax = weight.abs().view(rows // height, height, columns).amax(1)
    amax = amax.view(rows // height, columns // width, width).amax(2)
    if not bool(amax.isfinite().all()):
        raise ValueError("holds inf or NaN")
    return amax


def _of_amax(amax: Tensor, grid: Grid) -> Tensor:
    return torch.where(amax > 0, amax / grid.span, 1.0)


def _codes(w: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    return grid.encode(w / scale[:, None, :, None])


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    return scale.clamp(MIN_SCALE, MAX_SCALE).to(dtype)
