"""Launch geometry of the gated RMS norm."""

from __future__ import annotations

import ctypes

from deltart.plugins.gated_rms_norm.inputs import Shape
from deltart.plugins.launch import Launch, ints, pointers, require

BLOCK = 128  # one warp per head
MAX_CHANNELS = 512


def norm(shape: Shape, at: dict[str, int]) -> Launch:
    """`at`: x weight z y."""
    require(
        0 < shape.head_dim <= MAX_CHANNELS and shape.head_dim % 4 == 0,
        f"heads of {shape.head_dim}",
        f"a multiple of 4 up to {MAX_CHANNELS}",
    )
    rows = shape.slots * shape.tokens * shape.heads
    args = (
        *pointers(at, "x", "weight"),
        *ints(shape.parameter_dtype == "bf16"),
        *pointers(at, "z", "y"),
        *ints(rows, shape.head_dim),
        ctypes.c_float(shape.epsilon),
    )
    return Launch(f"gated_rms_norm_{shape.dtype}", (-(-rows // (BLOCK // 32)), 1, 1), BLOCK, 0, args)
