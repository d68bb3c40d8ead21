"""Launch geometry of the block-FP8 linear: which kernel serves a shape, and how K is split."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from deltart.plugins.fp8_block_linear.inputs import BLOCK, Shape
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

TILES = (1, 2, 4)  # tokens per block, in eights
ROWS = 16  # of the weight, per warp
TILE_STRIDE = 20
ENOUGH_WARPS = 2048  # with 2 KiB on the way for each: covers the memory latency of any of the targets
MOST_WARPS = 8


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
        return 4 * self.warps * 8 * self.tiles * TILE_STRIDE


def split(shape: Shape, weights: int = 1) -> Split:
    """As many parts of K as fill the GPU with warps. It follows from the shape alone, so results repeat."""
    tiles = next((t for t in TILES if shape.rows <= 8 * t), TILES[-1])
    row_groups = 1 if tiles <= 2 else 4
    warps = weights * -(-shape.n // ROWS) * -(-shape.rows // (8 * tiles))
    parts, most = 1, min(MOST_WARPS // (row_groups * weights), -(-shape.k // BLOCK))
    while 2 * parts <= most and warps * parts < ENOUGH_WARPS:
        parts *= 2
    return Split(tiles, row_groups, parts, weights)


def _check(shape: Shape) -> None:
    require(
        shape.rows > 0 and shape.n > 0, f"x {shape.rows} x {shape.k}, weight {shape.n} x {shape.k}", "no empty axis"
    )
    require(shape.k % 16 == 0, f"K = {shape.k}", "a multiple of 16")


def _decode(kernel: str, shape: Shape, weights: Arguments, at: dict[str, int], by: Split) -> Launch:
    _check(shape)
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


def gate_up(shape: Shape, at: dict[str, int]) -> Launch:
    """y = silu(x W^T) * (x up^T), tokens as `decode`. `at`: as `decode`, and up_weight up_weight_scale_inv, which have
    the shapes and types of weight and weight_scale_inv."""
    weights = pointers(at, "weight", "weight_scale_inv", "up_weight", "up_weight_scale_inv")
    return _decode("fp8_block_linear_gate_up", shape, weights, at, split(shape, 2))


TILE = 128  # tokens, and rows of the weight, per prefill block
PREFILL_SHARED = {"w8a16": 3 * TILE * (160 + 80), "w8a8": 2 * TILE * (144 + 144)}  # stages of x and weight, in bytes


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the scratch arrays of `prefill_w8a8`: the activations' E4M3 codes and their scales."""
    return {"codes": shape.rows * shape.k, "x_scale": 4 * shape.rows * -(-shape.k // BLOCK)}


def _prefill(kind: str, shape: Shape, activations: Arguments, at: dict[str, int]) -> Launch:
    _check(shape)
    require(shape.dtype == "bf16", f"{shape.dtype} activations", "bf16")
    args = (
        *activations,
        *pointers(at, "weight", "weight_scale_inv"),
        *ints(shape.scale_dtype == "bf16"),
        *pointers(at, "y"),
        *ints(shape.rows, shape.n, shape.k),
    )
    grid = (-(-shape.rows // TILE), -(-shape.n // TILE), 1)
    return Launch(f"fp8_block_linear_prefill_{kind}", grid, 256, PREFILL_SHARED[kind], args)


def prefill(shape: Shape, at: dict[str, int]) -> Launch:
    """Any number of bf16 tokens, meant for more than 64; activations as they are. `at`: as `decode`."""
    return _prefill("w8a16", shape, pointers(at, "x"), at)


def prefill_w8a8(shape: Shape, at: dict[str, int]) -> list[Launch]:
    """As `prefill`, activations rounded to E4M3 per token and 128 of K. `at`: as `decode`, and codes x_scale."""
    groups = shape.rows * -(-shape.k // BLOCK)
    args = (*pointers(at, "x", "codes", "x_scale"), *ints(shape.rows, shape.k))
    quantize = Launch("fp8_block_linear_quantize", (-(-groups // 8), 1, 1), 256, 0, args)
    return [quantize, _prefill("w8a8", shape, pointers(at, "codes", "x_scale"), at)]


def gate_up_workspace(shape: Shape) -> int:
    """Bytes of the scratch array of `gate_up_prefill`: x W^T in bf16."""
    return 2 * shape.rows * shape.n


def gate_up_prefill(shape: Shape, at: dict[str, int]) -> list[Launch]:
    """`gate_up` for any number of bf16 tokens, meant for more than 64. `at`: as `gate_up`, and gate."""
    up = {"weight": at["up_weight"], "weight_scale_inv": at["up_weight_scale_inv"]}
    count = shape.rows * shape.n
    product = Launch(
        "fp8_block_linear_silu_mul",
        (-(-count // (8 * 256)), 1, 1),
        256,
        0,
        (*pointers(at, "gate", "y"), ctypes.c_longlong(count)),
    )
    return [prefill(shape, at | {"y": at["gate"]}), prefill(shape, at | up), product]


MOST_DECODE = 64  # tokens from which the tile kernel, which reads each weight once per 128 of them, takes over


def forward(shape: Shape, at: dict[str, int]) -> tuple[str, Launch]:
    """The kernel for a shape, activations as they are, and the source that holds it. `at`: as `decode`."""
    if shape.rows <= MOST_DECODE or shape.dtype == "f32":
        return "decode.cu", decode(shape, at)
    return "prefill.cu", prefill(shape, at)
