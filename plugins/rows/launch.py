"""Launch geometry of the ops that move rows, which are counted in pieces of 16 bytes."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.dtypes import BY_SHORT
from deltart.plugins.launch import Launch, ints, pointers, require

BLOCK, PIECE = 256, 16


@dataclass(frozen=True)
class Gather:
    """`rows` rows of `width` values picked out of groups of `limit`, `picked` of each; one group where that is 0."""

    rows: int
    picked: int
    limit: int
    width: int
    dtype: str = "bf16"


def take(shape: Gather, at: dict[str, int]) -> Launch:
    """`at`: source [groups, limit, width], index [rows] and y [rows, width]."""
    require(shape.rows > 0 and shape.limit > 0, f"{shape.rows} of {shape.limit} rows", "at least one")
    pieces = _pieces(shape.width, shape.dtype)
    args = (*pointers(at, "source", "index", "y"), *ints(shape.picked, shape.limit, pieces))
    return Launch("take_rows", (shape.rows, -(-pieces // BLOCK), 1), BLOCK, 0, args)


def concat(rows: int, widths: tuple[int, int], dtype: str, at: dict[str, int]) -> Launch:
    """`at`: first [rows, widths[0]], second [rows, widths[1]] and y [rows, both]."""
    require(rows > 0, f"{rows} rows", "at least one")
    first, second = (_pieces(width, dtype) for width in widths)
    args = (*pointers(at, "first", "second", "y"), *ints(first, second))
    return Launch("concat_rows", (rows, -(-(first + second) // BLOCK), 1), BLOCK, 0, args)


def _pieces(width: int, dtype: str) -> int:
    require(width > 0 and width % 8 == 0, f"rows of {width}", "a multiple of 8")
    return width * BY_SHORT[dtype].itemsize // PIECE
