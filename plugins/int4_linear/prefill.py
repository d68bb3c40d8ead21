"""Launch geometry of the int4 linear in prefill: tiles, splits of K and scratch as of the block-FP8 linear."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear import inputs as fp8
from deltart.plugins.fp8_linear import prefill as tiles
from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.int4_linear.launch import check, layout, scale_type
from deltart.plugins.launch import Launch, ints, pointers, require

# Three stages of x, the weight and its scales: 64 of K.
KERNEL = tiles.TileKernel("int4_linear_prefill", "prefill.cu", tiles.TILE, 256, 3 * tiles.TILE * (128 + 32 + 12))
SHARE = 8 * 256  # values of y per block of the gated product


def _alike(shape: Shape) -> fp8.Shape:
    """A block-FP8 linear with as many tiles and blocks of K."""
    return fp8.Shape(shape.slots, shape.tokens, shape.n, shape.k)


def splits(shape: Shape) -> int:
    """Parts of K, each with its own tiles."""
    return tiles.splits(_alike(shape), KERNEL)


def partial_bytes(shape: Shape) -> int:
    """Bytes of the split sums of this call."""
    return tiles.partial_bytes(_alike(shape), KERNEL)


def max_partial_bytes(shape: Shape) -> int:
    """At least `partial_bytes` of this call and of any with fewer rows."""
    return tiles.max_partial_bytes(_alike(shape), tiles.TILE)


def gate_bytes(shape: Shape) -> int:
    """Bytes of the scratch array `gate`: x W^T in bf16."""
    return 2 * shape.rows * shape.n


def prefill(shape: Shape, at: dict[str, int]) -> list[Launch]:
    """The tiles of y, and the sum over the splits of K where there are any; any number of bf16 tokens, meant for more
    than 64. `at`: x weight_groups weight_scale y, and partial, of `partial_bytes`."""
    check(shape)
    require(shape.dtype == "bf16", f"{shape.dtype} activations", "bf16")
    count = splits(shape)
    at = at | {"partial": at["partial"] if count > 1 else 0}
    args = (
        *pointers(at, "x", "weight_groups", "weight_scale"),
        *scale_type(shape),
        *pointers(at, "y", "partial"),
        *ints(shape.rows, shape.n, shape.k),
        *layout(shape),
    )
    grid = (-(-shape.rows // KERNEL.tokens), -(-shape.n // tiles.TILE), count)
    launches = [Launch(KERNEL.name, grid, KERNEL.threads, KERNEL.shared_bytes, args)]
    if count > 1:
        size = shape.rows * shape.n
        args = (*pointers(at, "partial", "y"), *ints(count, size))
        launches.append(Launch("int4_linear_add_splits", (-(-size // 256), 1, 1), 256, 0, args))
    return launches


def gate_up(shape: Shape, at: dict[str, int]) -> list[Launch]:
    """y = silu(x W^T) * (x up^T), tokens as `prefill`. `at`: as `prefill`, and gate, up_groups and up_scale."""
    up = {"weight_groups": at["up_groups"], "weight_scale": at["up_scale"]}
    count = shape.rows * shape.n
    args = (*pointers(at, "gate", "y"), ctypes.c_longlong(count))
    return [
        *prefill(shape, at | {"y": at["gate"]}),
        *prefill(shape, at | up),
        Launch("int4_linear_silu_mul", (-(-count // SHARE), 1, 1), 256, 0, args),
    ]
