"""Launch geometry of the normalised, rotated queries and keys."""

from __future__ import annotations

import ctypes

from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.qk_norm_rope.inputs import Shape

BLOCK = 128  # one warp per head
MAX_CHANNELS = 256


def rope(shape: Shape, at: dict[str, int]) -> Launch:
    """`at`: q_gate k q_weight k_weight cos sin q k_out gate, all aligned to 16 bytes."""
    fits = 0 < shape.head_dim <= MAX_CHANNELS and shape.head_dim % 8 == 0
    require(fits, f"heads of {shape.head_dim}", f"a multiple of 8 up to {MAX_CHANNELS}")
    turned = shape.rotary_dim
    require(0 < turned <= shape.head_dim and turned % 16 == 0, f"{turned} rotary dimensions", "a multiple of 16")
    args = (
        *pointers(at, "q_gate", "k", "q_weight", "k_weight"),
        *ints(shape.parameter_dtype == "bf16"),
        *pointers(at, "cos", "sin", "q", "k_out", "gate"),
        *ints(shape.rows, shape.heads, shape.kv_heads, shape.head_dim, turned),
        ctypes.c_float(shape.epsilon),
    )
    warps = shape.rows * (shape.heads + shape.kv_heads)
    return Launch(f"qk_norm_rope_{shape.dtype}", (-(-warps // (BLOCK // 32)), 1, 1), BLOCK, 0, args)
