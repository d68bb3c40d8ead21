"""The decode kernel with the gated RMS norm behind it, in one launch: where a block owns a whole value head."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.launch import DECODE_TOKENS
from deltart.plugins.launch import Launch, ints, pointers, require

COLUMNS, MAX_WARPS = 16, 8  # of a warp, and of a block


@dataclass(frozen=True)
class Norm:
    """The norm's own: its weight's type ("f32" or "bf16"), and its epsilon."""

    weight_dtype: str = "bf16"
    epsilon: float = 1e-6


def can_join(shape: Shape) -> bool:
    """Whether the norm behind a call of this shape can run in its launch."""
    fits = shape.value_dim % COLUMNS == 0 and 0 < shape.value_dim <= COLUMNS * MAX_WARPS
    return fits and 1 <= shape.tokens <= DECODE_TOKENS


def decode_norm(shape: Shape, norm: Norm, at: dict[str, int]) -> Launch:
    """`at`: as launch.decode without o, and z norm_weight y; all aligned to 16 bytes."""
    found = f"{shape.tokens} tokens, value heads of {shape.value_dim}"
    require(can_join(shape), found, f"up to {DECODE_TOKENS}, multiples of {COLUMNS} up to {COLUMNS * MAX_WARPS}")
    args = (
        *pointers(at, "qkv", "a", "b", "A_log", "dt_bias"),
        *ints(shape.A_log_dtype == "bf16", shape.dt_bias_dtype == "bf16"),
        *pointers(at, "S", "n_tokens", "n_commit", "z", "norm_weight"),
        *ints(norm.weight_dtype == "bf16"),
        *pointers(at, "y"),
        *ints(shape.tokens, shape.key_heads, shape.value_heads, shape.value_dim),
        ctypes.c_float(norm.epsilon),
    )
    staged = shape.tokens * (2 * shape.key_dim + 3 * shape.value_dim + 4)  # q, k; v, z, o; gates
    shared = 4 * (staged + shape.value_dim)
    grid = (1, shape.value_heads, shape.slots)
    return Launch(f"gated_delta_rule_norm_{shape.dtype}", grid, 32 * shape.value_dim // COLUMNS, shared, args)
