"""Launch geometry of the LM head."""

from __future__ import annotations

from deltart.plugins.launch import Arguments, Launch, ints, pointers, require
from deltart.plugins.lm_head.inputs import Shape

BLOCK_ROWS = 128
FEW_ROWS = 8192  # up to as many of a whole bf16 weight, logits alone are made by blocks of ROWS
ROWS = 16
TILES = (1, 4)  # tokens per block, in eights
WARPS = 8
TILE_STRIDE = 20
RING_BYTES = 4 * 2048  # of a warp
MAX_KEPT = 64
MERGE_THREADS = 1024


def lists(shape: Shape) -> int:
    """Blocks of rows, each of which leaves its own best tokens."""
    return -(-shape.scored // BLOCK_ROWS)


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the two scratch arrays that the launches of one call need."""
    count = 4 * shape.rows * lists(shape) * shape.keep
    return {"block_logits": count, "block_ids": count}


def logits(shape: Shape, at: dict[str, int]) -> Launch:
    """All logits and no best tokens. `at`: x weight logits; weight_scale_inv for E4M3; ids for a subset."""
    if shape.weight_dtype == "bf16" and not shape.subset and shape.vocabulary <= FEW_ROWS:
        return _few(shape, at)
    return _scores(shape, {"block_logits": 0, "block_ids": 0} | at, keep=0)


def head(shape: Shape, at: dict[str, int], merge_threads: int = MERGE_THREADS) -> list[Launch]:
    """`at`: x weight best_logits best_ids block_logits block_ids; weight_scale_inv for E4M3; ids for a subset; logits
    where they are wanted."""
    require(0 < shape.keep <= MAX_KEPT, f"{shape.keep} best tokens", f"1 to {MAX_KEPT}")
    merged = (*pointers(at, "block_logits", "block_ids", "best_logits", "best_ids"), *ints(lists(shape), shape.keep))
    shared = 8 * (merge_threads // 32) + 4 * lists(shape)
    return [
        _scores(shape, at, shape.keep),
        Launch("lm_head_merge", (shape.rows, 1, 1), merge_threads, shared, merged),
    ]


def _tiles(shape: Shape) -> int:
    require(shape.k % 16 == 0, f"K = {shape.k}", "a multiple of 16")
    return TILES[0] if shape.rows <= 8 * TILES[0] else TILES[-1]


def _shared_bytes(tiles: int) -> int:
    return WARPS * (4 * 8 * tiles * TILE_STRIDE + RING_BYTES)


def _few(shape: Shape, at: dict[str, int]) -> Launch:
    tiles = _tiles(shape)
    args = (*pointers(at, "x", "weight", "logits"), *ints(shape.rows, shape.vocabulary, shape.k))
    grid = (-(-shape.rows // (8 * tiles)), -(-shape.vocabulary // ROWS), 1)
    return Launch(f"lm_head_few_{shape.dtype}_bf16_m{tiles}", grid, 32 * WARPS, _shared_bytes(tiles), args)


def _scores(shape: Shape, at: dict[str, int], keep: int) -> Launch:
    tiles = _tiles(shape)
    optional = {"ids": 0, "logits": 0} | at
    scale: Arguments = ()
    if shape.weight_dtype == "e4m3":
        scale = (*pointers(at, "weight_scale_inv"), *ints(shape.scale_dtype == "bf16"))
    args = (
        *pointers(at, "x", "weight"),
        *scale,
        *pointers(optional, "ids", "logits", "block_logits", "block_ids"),
        *ints(shape.rows, shape.vocabulary, shape.k, shape.scored, shape.limit, keep),
    )
    grid = (lists(shape), -(-shape.rows // (8 * tiles)), 1)
    return Launch(f"lm_head_{shape.dtype}_{shape.weight_dtype}_m{tiles}", grid, 32 * WARPS, _shared_bytes(tiles), args)
