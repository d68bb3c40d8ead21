"""Block-128 E4M3 weights: scales by absmax or by search, and rounding against them.

Values are rounded to nearest, ties to even, and saturate at +-448. Scales multiply (`weight_scale_inv`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from deltart.dtypes import E4M3_MAX
from deltart.plugins.fp8_linear.reference import BLOCK

# Scales stay normal numbers, which no GPU flushes to zero, and 448 times a scale stays finite in BF16.
MIN_SCALE, MAX_SCALE = 2.0**-126, 145.0 * 2.0**112
# Multiples of the absmax scale worth trying. E4M3 repeats itself every octave, and less than absmax would clip.
FACTORS = tuple(2.0 ** (step / 24) for step in range(24))
STRIPE_ELEMENTS = 1 << 19  # work on stripes that stay in the cache


@dataclass(frozen=True)
class Quantized:
    """weight E4M3 [N, K] and scale [N/128, K/128] in its stored dtype."""

    weight: Tensor
    scale: Tensor

    def dequantized(self) -> Tensor:
        """The float32 values [N, K] that every consumer sees."""
        return blocks(decode(self.weight)).mul_(self.scale.float()[:, None, :, None]).view(self.weight.shape)

    def rows(self, rows: slice) -> Quantized:
        """Whole blocks of rows."""
        return Quantized(self.weight[rows], self.scale[rows.start // BLOCK : -(-rows.stop // BLOCK)])


def blocks(weight: Tensor) -> Tensor:
    """[N, K] as [N/128, 128, K/128, 128], without a copy."""
    rows, columns = weight.shape
    return weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)


@contextmanager
def one_thread() -> Iterator[None]:
    """One core keeps up with memory on elementwise work; waiting for the others can cost ten times as much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode(values: Tensor) -> Tensor:
    """E4M3 to float32, ten times as fast as `values.float()`: the bits are a float32's but for the exponent's bias."""
    bits = values.view(torch.int8).to(torch.int32)  # the sign is spread over the upper 25 bits
    bits.bitwise_left_shift_(20).bitwise_and_(-0x78100000)  # sign, 4 of the 8 exponent bits, 3 of mantissa
    return bits.view(torch.float32).mul_(2.0**120)


def stripe_rows(weight: Tensor) -> int:
    """Height of the stripes to work in: whole blocks, about STRIPE_ELEMENTS elements."""
    return max(1, STRIPE_ELEMENTS // weight.shape[1] // BLOCK) * BLOCK


def stripes(weight: Tensor) -> Iterator[Tensor]:
    """Float32 copies of the weight's rows, stripe_rows at a time; the caller may change them."""
    return (stripe.to(torch.float32, copy=True) for stripe in weight.split(stripe_rows(weight)))


def absmax(weight: Tensor, scale_dtype: torch.dtype = torch.bfloat16) -> Quantized:
    """The vendor's convention: scale = amax / 448 per block, values rounded against the float32 scale.

    The scale is rounded to `scale_dtype` only when stored. Values and float32 scales equal those of transformers'
    own quantizer bit for bit, but for blocks below 2^-117, where its reciprocal overflows.

    Raises:
        ValueError: the weight holds inf or NaN.
    """
    values, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), []
    for stripe, target in zip(stripes(weight), values.split(stripe_rows(weight)), strict=True):
        w = blocks(stripe)
        amax = block_amax(stripe)
        forward = (E4M3_MAX / amax).clamp(max=1 / MIN_SCALE).masked_fill(amax == 0, 1.0)
        blocks(target).copy_(w.mul_(forward[:, None, :, None]))  # within 448 as it is
        scales.append(_stored(1.0 / forward, scale_dtype))
    return Quantized(values, torch.cat(scales))


def search(weight: Tensor, importance: Tensor | None, scale_dtype: torch.dtype = torch.bfloat16) -> Quantized:
    """Per block the scale of least squared error, values rounded against the stored scale.

    Args:
        importance: weight of each input's error [K], the inputs' second moments; all equal when None.

    Raises:
        ValueError: the weight holds inf or NaN.
    """
    scale = search_scale(weight, importance, scale_dtype)
    return Quantized(rounded(weight, scale), scale)


def search_scale(weight: Tensor, importance: Tensor | None, scale_dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The scales [N/128, K/128] that `search` finds."""
    return torch.cat([best_scale(stripe, importance, scale_dtype) for stripe in stripes(weight)])


def rounded(weight: Tensor, scale: Tensor) -> Tensor:
    """E4M3 values [N, K] of a weight against given scales."""
    height = stripe_rows(weight) // BLOCK
    parts = zip(stripes(weight), scale.float().split(height), strict=True)
    return torch.cat([_round(blocks(stripe), part).view(stripe.shape) for stripe, part in parts])


def best_scale(stripe: Tensor, importance: Tensor | None, scale_dtype: torch.dtype) -> Tensor:
    """Scales [n/128, K/128] of least squared error, of those that FACTORS offer, for float32 rows [n, K].

    Among equals the smallest wins; an all-zero block has scale 1, as with absmax.
    """
    w = blocks(stripe)
    amax = block_amax(stripe)
    start = torch.where(amax > 0, amax / E4M3_MAX, 1.0)
    best, least = _stored(start, scale_dtype), torch.full_like(start, torch.inf)
    for factor in FACTORS:
        scale = _stored(torch.where(amax > 0, start * factor, 1.0), scale_dtype)
        s = scale.float()[:, None, :, None]
        error = (decode(_round(w, scale.float())).mul_(s).sub_(w) / start[:, None, :, None]).square_()
        if importance is not None:
            error *= importance.view(-1, BLOCK)
        total = error.sum((1, 3))
        best = torch.where(total < least, scale, best)
        least = torch.minimum(total, least)
    return best


def block_amax(weight: Tensor) -> Tensor:
    """Largest |w| of each block of float32 rows [n, K]: [n/128, K/128]. Raises ValueError for inf or NaN."""
    rows, columns = weight.shape
    amax = weight.abs().view(rows // BLOCK, BLOCK, columns).amax(1).view(rows // BLOCK, columns // BLOCK, BLOCK).amax(2)
    if not bool(amax.isfinite().all()):
        raise ValueError("holds inf or NaN")
    return amax


def _round(w: Tensor, scale: Tensor) -> Tensor:
    return (w / scale[:, None, :, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    return scale.clamp(MIN_SCALE, MAX_SCALE).to(dtype)
