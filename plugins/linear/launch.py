"""Launch geometry of the plain linears: that of the block-FP8 linear in decode."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.launch import ROWS, split
from deltart.plugins.fp8_linear.prefill import check
from deltart.plugins.launch import Launch, ints, pointers

SHARE = 8 * 256  # values of y per block of the product


def linear(shape: Shape, at: dict[str, int]) -> Launch:
    """Any number of tokens, meant for few. `at`: x weight y, aligned to 16 bytes."""
    return _product("linear", shape, ("weight",), at)


def gate_up(shape: Shape, at: dict[str, int]) -> Launch:
    """As `linear`. `at`: x weight up_weight y."""
    return _product("linear_gate_up", shape, ("weight", "up_weight"), at)


def silu_mul(shape: Shape, at: dict[str, int]) -> Launch:
    """Any number of tokens; `shape.k` is of no account. `at`: gate up y, aligned to 16 bytes."""
    count = shape.rows * shape.n
    args = (*pointers(at, "gate", "up", "y"), ctypes.c_longlong(count))
    return Launch(f"silu_mul_{shape.dtype}", (-(-count // SHARE), 1, 1), 256, 0, args)


def _product(kernel: str, shape: Shape, weights: tuple[str, ...], at: dict[str, int]) -> Launch:
    check(shape)
    by = split(shape, len(weights))
    args = (*pointers(at, "x", *weights, "y"), *ints(shape.rows, shape.n, shape.k, by.row_groups))
    grid = (-(-shape.rows // (8 * by.tiles)), -(-shape.n // (ROWS * by.row_groups)), 1)
    return Launch(f"{kernel}_{shape.dtype}_m{by.tiles}", grid, 32 * by.warps, by.shared_bytes, args)
