"""Launch geometry of the block-FP8 linear: which kernel serves a shape, and how decode fills the GPU."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.prefill import W8A16, check, prefill
from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.plugins.launch import Arguments, Launch, ints, pointers

TILES = (1, 2, 4)  # tokens per block, in eights
ROWS = 16  # of the weight, per warp
TILE_STRIDE = 20
RING_BYTES = 4 * 2048  # of a warp: four blocks of 16 rows
ENOUGH_WARPS = 1700  # with 2 KiB on the way for each: covers the memory latency of any of the targets
MAX_WARPS, MAX_GROUPS = 8, 4


@dataclass(frozen=True)
class Split:
    """How a block divides its work: tokens (in eights), 16-row groups of each weight, parts of K, and weights."""

    tiles: int
    row_groups: int
    parts: int
    weights: int = 1

    @property
    def warps(self) -> int:
        return self.row_groups * self.parts * self.weights

    @property
    def shared_bytes(self) -> int:
        return self.warps * (4 * 8 * self.tiles * TILE_STRIDE + RING_BYTES)


def split(shape: Shape, weights: int = 1) -> Split:
    """As many parts of K as fill the GPU with warps when there is one row. They follow from the weight alone, so a
    row's sums are the same whatever rows share the call."""
    tiles = next((t for t in TILES if shape.rows <= 8 * t), TILES[-1])
    warps, parts, limit = weights * -(-shape.n // ROWS), 1, min(MAX_WARPS // weights, -(-shape.k // BLOCK))
    while 2 * parts <= limit and warps * parts < ENOUGH_WARPS:
        parts *= 2
    row_groups = 1 if tiles <= 2 else min(MAX_GROUPS, MAX_WARPS // (parts * weights))
    return Split(tiles, row_groups, parts, weights)


def _decode(kernel: str, shape: Shape, weights: Arguments, at: dict[str, int], by: Split) -> Launch:
    check(shape)
    args = (
        *pointers(at, "x"),
        *weights,
        *ints(shape.scale_dtype == "bf16"),
        *pointers(at, "y"),
        *ints(shape.rows, shape.n, shape.k, by.row_groups),
    )
    grid = (-(-shape.rows // (8 * by.tiles)), -(-shape.n // (ROWS * by.row_groups)), 1)
    return Launch(f"{kernel}_{shape.dtype}_m{by.tiles}", grid, 32 * by.warps, by.shared_bytes, args)


def decode(shape: Shape, at: dict[str, int], by: Split | None = None) -> Launch:
    """Any number of tokens, meant for 1 to 64. `at`: x weight weight_scale_inv y, all aligned to 16 bytes."""
    weights = pointers(at, "weight", "weight_scale_inv")
    return _decode("fp8_block_linear_decode", shape, weights, at, by or split(shape))


def decode_gate_up(shape: Shape, at: dict[str, int]) -> Launch:
    """y = silu(x W^T) * (x up^T), tokens as `decode`. `at`: as `decode`, and up_weight up_weight_scale_inv, which have
    the shapes and types of weight and weight_scale_inv."""
    weights = pointers(at, "weight", "weight_scale_inv", "up_weight", "up_weight_scale_inv")
    return _decode("fp8_block_linear_gate_up", shape, weights, at, split(shape, 2))


MAX_DECODE = 64  # tokens from which the tile kernel, which reads each weight once per 128 of them, takes over


def forward(shape: Shape, at: dict[str, int]) -> tuple[str, list[Launch]]:
    """The kernels for a shape, activations as they are, and the source that holds them. `at`: as `decode`, and the
    arrays of `prefill.workspace`."""
    if shape.rows <= MAX_DECODE or shape.dtype == "f32":
        return "decode.cu", [decode(shape, at)]
    return W8A16.source, prefill(shape, W8A16, at)
