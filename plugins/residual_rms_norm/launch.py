"""Launch geometry of the residual RMS norm."""

from __future__ import annotations

import ctypes

from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.residual_rms_norm.inputs import Shape

BLOCK = 256
MAX_WIDTH = 8192


def norm(shape: Shape, at: dict[str, int]) -> Launch:
    """`at`: h weight y; x where it is added to h first, and then `sum` for the result, without which h is updated."""
    fits = 0 < shape.width <= MAX_WIDTH and shape.width % 8 == 0 and shape.rows > 0
    require(fits, f"{shape.rows} rows of {shape.width}", f"rows of a multiple of 8 up to {MAX_WIDTH}")
    args = (
        *pointers({"x": 0} | at, "x", "h", "weight"),
        *ints(shape.parameter_dtype == "bf16"),
        *pointers({"sum": at["h"]} | at, "y", "sum"),
        *ints(shape.width),
        ctypes.c_float(shape.epsilon),
    )
    return Launch(f"residual_rms_norm_{shape.dtype}", (shape.rows, 1, 1), BLOCK, 4 * BLOCK // 32, args)
