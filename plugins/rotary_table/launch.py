"""Launch geometry of the rotary table."""

from __future__ import annotations

import ctypes

from deltart.plugins.launch import Launch, ints, pointers, require

BLOCK = 128


def table(rows: int, pairs: int, scale: float, at: dict[str, int], dtype: str = "bf16") -> Launch:
    """`at`: position_ids axes inv_freq cos sin."""
    require(rows > 0 and pairs > 0, f"{rows} tokens of {pairs} pairs", "no empty axis")
    args = (
        *pointers(at, "position_ids", "axes", "inv_freq", "cos", "sin"),
        *ints(rows, pairs),
        ctypes.c_float(scale),
    )
    return Launch(f"rotary_table_{dtype}", (-(-rows * pairs // BLOCK), 1, 1), BLOCK, 0, args)
