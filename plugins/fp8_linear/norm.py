"""A linear with the residual sum and norm that follow it, in one launch: where a call is one tile of tokens and a block
has as many threads as the norm."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.launch import ROWS, split
from deltart.plugins.fp8_linear.prefill import check
from deltart.plugins.kernel_call import Call
from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.residual_rms_norm.launch import BLOCK, MAX_WIDTH

TOKENS = 8  # of a tile: the last block works through them one after another


def can_join(shape: Shape) -> bool:
    """Whether the norm behind a linear of this shape can run in its launch."""
    return shape.rows <= TOKENS and 32 * split(shape).warps == BLOCK and shape.n <= MAX_WIDTH and shape.n % 8 == 0


def linear_norm(shape: Shape, norm_dtype: str, epsilon: float, at: dict[str, int]) -> Launch:
    """`at`: x weight weight_scale_inv y, h norm_weight normed sum, and arrived, an int that is 0 before and after."""
    check(shape)
    found = f"{shape.rows} tokens of {shape.n} x {shape.k}"
    require(can_join(shape), found, f"up to {TOKENS} tokens, and {BLOCK} threads a block")
    by = split(shape)
    args = (
        *pointers(at, "x", "weight", "weight_scale_inv"),
        *ints(shape.scale_dtype == "bf16"),
        *pointers(at, "y"),
        *ints(shape.rows, shape.n, shape.k, by.row_groups),
        *pointers(at, "h", "norm_weight"),
        *ints(norm_dtype == "bf16"),
        *pointers(at, "normed", "sum"),
        ctypes.c_float(epsilon),
        *pointers(at, "arrived"),
    )
    grid = (1, -(-shape.n // (ROWS * by.row_groups)), 1)
    return Launch(f"fp8_block_linear_norm_{shape.dtype}", grid, BLOCK, by.shared_bytes, args)


def product_bytes(call: Call) -> int:
    """The product, before it is added."""
    return 4 * call.sizes["B"] * call.sizes["T"] * call.sizes["N"]


def launches(call: Call) -> tuple[str, list[Launch]]:
    """The source and launch of one call."""
    sizes, dtypes = call.sizes, call.dtypes
    shape = Shape(sizes["B"], sizes["T"], sizes["N"], sizes["K"], dtypes["x"], dtypes["weight_scale_inv"])
    at = call.at | {"y": call.at["workspace"]}
    return "norm.cu", [linear_norm(shape, dtypes["norm_weight"], sizes["epsilon"], at)]
