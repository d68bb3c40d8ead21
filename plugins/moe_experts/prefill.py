"""Launch geometry of the routed experts of many tokens: their order, and the grouped products."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from deltart.plugins.fp8_linear.prefill import ENOUGH_BLOCKS, HOPPER
from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.stored import NULL, stored

THREADS, QUANTIZE_LANES = 256, 16
TILE_TOKENS = 64  # the fewest of any kernel


@dataclass(frozen=True)
class GroupKernel:
    """The grouped products of a kind: the end of their names, source, places and rows of W of a tile, threads, bytes of
    shared memory, and whether blocks of threads take tiles by turns."""

    kind: str
    source: str
    tokens: int
    rows: int
    threads: int
    shared_bytes: int
    persistent: bool = False

    def tiles(self, shape: Shape) -> int:
        """At least the tiles of places of any routes."""
        return shape.places // self.tokens + groups(shape)

    def across(self, shape: Shape) -> tuple[int, int]:
        """Tiles of rows of W: of gate and up, which share one, and of down."""
        return -(-shape.stride // (self.rows // 2)), -(-shape.hidden // self.rows)


def _tiles_of_64(kind: str, stride_x: int, stride: int) -> GroupKernel:
    """Three stages of rows of x and of W, so many bytes apart."""
    return GroupKernel(kind, "prefill.cu", TILE_TOKENS, 128, THREADS, 3 * (64 * stride_x + 128 * stride) + 4 * 64)


W8A16, W8A8, BF16 = _tiles_of_64("e4m3", 160, 80), _tiles_of_64("w8a8", 80, 80), _tiles_of_64("bf16", 144, 144)
# Four stages of three tiles of 128 x 128 and 128 scales; their barriers.
WGMMA = GroupKernel("wgmma", "prefill_wgmma.cu", 128, 256, 384, 4 * (3 * 128 * BLOCK + 4 * 128) + 64, persistent=True)


def kernel_of(shape: Shape, capability: int) -> GroupKernel:
    """That of a GPU by its compute capability times ten: wgmma is in sm_90a alone."""
    if shape.quantized:
        return WGMMA if capability == HOPPER else W8A8
    return W8A16 if shape.stored == "e4m3" else BF16


def groups(shape: Shape) -> int:
    """Slots of experts, and the shared one."""
    return shape.stored_experts + (shape.shared > 0)


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the scratch arrays by name; enough for any kernel, and for any call with fewer tokens too."""
    places, tiles = 4 * shape.places, 4 * (shape.places // TILE_TOKENS + groups(shape))
    arrays = {"count": 4 * groups(shape), "place": places, "position": places}
    arrays |= dict.fromkeys(("tile_slot", "tile_first", "tile_tokens"), tiles)
    arrays["rows"] = 2 * shape.places * shape.hidden
    if shape.quantized:  # x's, then h's
        groups_of = shape.rows * -(-shape.hidden // BLOCK), shape.places * -(-shape.stride // BLOCK)
        arrays |= {"codes": max(shape.rows * shape.hidden, shape.places * shape.stride), "scales": 4 * max(groups_of)}
    return arrays


def prefill(
    shape: Shape, at: dict[str, int], kernel: GroupKernel, multiprocessors: int = ENOUGH_BLOCKS
) -> list[Launch]:
    """All but the routes. `at`: as `launch.experts`, and `slot` and `weight` of the places."""
    require(shape.dtype == "bf16", f"{shape.dtype} activations of {shape.rows} tokens", "bf16")
    weights, order = stored(shape, at), ("place", "tile_slot", "tile_first", "tile_tokens")
    tiles, partial, count = kernel.tiles(shape), 4 * (THREADS // 32), shape.rows * shape.hidden
    arranged = (
        *pointers(at, "slot", "count", "place", "position", "tile_slot", "tile_first", "tile_tokens"),
        *ints(shape.places, groups(shape), tiles, kernel.tokens),
    )
    x, h = (("codes", "scales"),) * 2 if shape.quantized else (("x", "none"), ("h", "none"))
    taken = ints(tiles) if kernel.persistent else ()
    gate_up = (*pointers(NULL | at, *x, *order, "h"), *weights, *ints(shape.choices, shape.stride), *taken)
    down = (*pointers(NULL | at, *h, "weight", *order, "rows"), *weights, *ints(shape.stride), *taken)
    combined = (*pointers(at, "rows", "position", "y"), *ints(shape.choices, shape.hidden), ctypes.c_longlong(count))
    grids = [
        (min(tiles * across, multiprocessors), 1, 1) if kernel.persistent else (tiles, across, 1)
        for across in kernel.across(shape)
    ]
    rounded = [_quantize(shape, at, of) for of in ("x", "h")] if shape.quantized else [None, None]
    made = [
        Launch("moe_experts_count", (groups(shape), 1, 1), THREADS, partial,
               (*pointers(at, "slot", "count"), *ints(shape.places))),
        Launch("moe_experts_arrange", (groups(shape), 1, 1), THREADS, partial, arranged),
        rounded[0],
        Launch(f"moe_experts_group_gate_up_{kernel.kind}", grids[0], kernel.threads, kernel.shared_bytes, gate_up),
        rounded[1],
        Launch(f"moe_experts_group_down_{kernel.kind}", grids[1], kernel.threads, kernel.shared_bytes, down),
        Launch("moe_experts_combine", (-(-count // (8 * THREADS)), 1, 1), THREADS, 0, combined),
    ]  # fmt: skip
    return [launch for launch in made if launch is not None]


def _quantize(shape: Shape, at: dict[str, int], of: str) -> Launch:
    """Codes and scales of x, or of h, whose rows are the ordered places."""
    rows, k = (shape.rows, shape.hidden) if of == "x" else (shape.places, shape.stride)
    order = ("none", "none") if of == "x" else ("slot", "position")
    sizes = ints(rows, k, shape.stored_experts, shape.width, shape.shared)
    args = (*pointers(NULL | at, of, *order, "codes", "scales"), *sizes)
    blocks = -(-rows * -(-k // BLOCK) // (THREADS // QUANTIZE_LANES))
    return Launch("moe_experts_quantize", (blocks, 1, 1), THREADS, 0, args)
