"""Launches of the gated pair of linears in prefill; decode's is `launch.decode_gate_up`."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.launch import Launch, pointers

SHARE = 8 * 256  # values of y per block of the last launch


def gate_bytes(shape: Shape) -> int:
    """Bytes of the scratch array `gate`: x W^T in bf16."""
    return 2 * shape.rows * shape.n


def prefill(
    shape: Shape, kernel: tiles.TileKernel, at: dict[str, int], multiprocessors: int = tiles.ENOUGH_BLOCKS
) -> list[Launch]:
    """Any number of bf16 tokens, meant for more than 64. `at`: as for `prefill.prefill` of `kernel`, x, gate,
    and up_weight up_weight_scale_inv."""
    up = {"weight": at["up_weight"], "weight_scale_inv": at["up_weight_scale_inv"]}
    first = tiles.prefill if kernel is tiles.W8A16 else tiles.prefill_w8a8  # the second takes the same codes
    count = shape.rows * shape.n
    args = (*pointers(at, "gate", "y"), ctypes.c_longlong(count))
    return [
        *first(shape, kernel, at | {"y": at["gate"]}, multiprocessors),
        *tiles.prefill(shape, kernel, at | up, multiprocessors),
        Launch("fp8_block_linear_silu_mul", (-(-count // SHARE), 1, 1), 256, 0, args),
    ]
