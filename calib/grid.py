"""Numbers that weights can be rounded to: codes, and scales that tiles of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltart.dtypes import E4M3_MAX
from deltart.plugins.fp8_linear.reference import BLOCK

INT4_MIN, INT4_MAX = -8, 7


@dataclass(frozen=True)
class Grid:
    """What a weight [N, K] is rounded to: code times scale.

    Attributes:
        tile: rows and columns that share a scale; both divide BLOCK.
        ends: smallest and largest code.
        span: scale of a tile times this is its largest |w|, by the convention of the format.
        factors: multiples of that scale worth trying.
        stored_first: whether that scale is rounded to its stored type before values are rounded against it.
        encode: codes of values in units of their scale; saturates.
        decode: float32 of codes.
    """

    tile: tuple[int, int]
    ends: tuple[float, float]
    span: float
    factors: tuple[float, ...]
    stored_first: bool
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """The nearest values that the scales allow; both of one shape, or broadcast."""
        return self.decode(self.encode(values / scale)).mul_(scale)

    def scale_rows(self, rows: slice) -> slice:
        """The rows of a scale that whole tiles of `rows` have."""
        return slice(rows.start // self.tile[0], -(-rows.stop // self.tile[0]))


def decode_e4m3(values: Tensor) -> Tensor:
    """E4M3 to float32, ten times as fast as `values.float()`: the bits are a float32's but for the exponent's bias."""
    bits = values.view(torch.int8).to(torch.int32)  # the sign is spread over the upper 25 bits
    bits.bitwise_left_shift_(20).bitwise_and_(-0x78100000)  # sign, 4 of the 8 exponent bits, 3 of mantissa
    return bits.view(torch.float32).mul_(2.0**120)


def _encode_e4m3(values: Tensor) -> Tensor:
    return values.clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def _encode_int4(values: Tensor) -> Tensor:
    return values.round_().clamp_(INT4_MIN, INT4_MAX).to(torch.int8)


# E4M3 repeats itself every octave, and less than absmax would clip.
FP8_BLOCKS = Grid(
    (BLOCK, BLOCK), (-E4M3_MAX, E4M3_MAX), E4M3_MAX, tuple(2.0 ** (step / 24) for step in range(24)), False,
    _encode_e4m3, decode_e4m3,
)  # fmt: skip


def int4_groups(size: int) -> Grid:
    """Symmetric int4 in groups of `size` values of a row. Clipping the largest often pays: 16 values are few."""
    factors = tuple(0.55 + 0.025 * step for step in range(22))  # to 1.075, where 7 reaches what 7.5 stands for
    return Grid((1, size), (INT4_MIN, INT4_MAX), 7.5, factors, True, _encode_int4, Tensor.float)
