"""An int4 linear with the residual sum and norm that follow it, in one launch: where a call is one tile of tokens and a
block has all its warps."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear.norm import TOKENS
from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.int4_linear.launch import MAX_WARPS, ROWS, check, layout, scale_type, split
from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.residual_rms_norm.launch import MAX_WIDTH


def can_join(shape: Shape) -> bool:
    """Whether the norm behind a linear of this shape can run in its launch."""
    return shape.rows <= TOKENS and split(shape).warps == MAX_WARPS and shape.n <= MAX_WIDTH and shape.n % 8 == 0


def linear_norm(shape: Shape, norm_dtype: str, epsilon: float, at: dict[str, int]) -> Launch:
    """`at`: x weight_groups weight_scale y, h norm_weight normed sum, and arrived, an int: 0 before and after."""
    check(shape)
    found = f"{shape.rows} tokens of {shape.n} x {shape.k}"
    require(can_join(shape), found, f"up to {TOKENS} tokens, and {32 * MAX_WARPS} threads a block")
    by = split(shape)
    args = (
        *pointers(at, "x", "weight_groups", "weight_scale"),
        *scale_type(shape),
        *pointers(at, "y"),
        *ints(shape.rows, shape.n, shape.k),
        *layout(shape),
        *ints(by.row_groups),
        *pointers(at, "h", "norm_weight"),
        *ints(norm_dtype == "bf16"),
        *pointers(at, "normed", "sum"),
        ctypes.c_float(epsilon),
        *pointers(at, "arrived"),
    )
    grid = (1, -(-shape.n // (ROWS * by.row_groups)), 1)
    return Launch(f"int4_linear_norm_{shape.dtype}", grid, 32 * by.warps, by.shared_bytes, args)
