"""Launch geometry of the routed experts: few tokens read each matrix once, many take the grouped tiles."""

from __future__ import annotations

import ctypes

from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require
from deltart.plugins.moe_experts.inputs import Shape

TILES = (1, 2, 8)  # tokens that chose one expert, in eights
MAX_DECODE_TOKENS, MAX_DECODE_PLACES = 8 * TILES[-1], 1024
ALIGNMENT = 256  # of the arrays in the workspace
TILE_STRIDE, SUM_STRIDE = 20, 17
RING_BYTES = 4 * 2048  # of a warp
SMALL_SHARED = 99 << 10  # bytes of shared memory that every GPU gives a block
HALF_ROWS, ROWS = 8, 16  # of a weight: a block of gate_up, and of down
GATE_UP_WARPS, MIN_WARPS = 4, 4
MAX_WARPS = {1: 10, 2: 10, 8: 8}  # of down, by TILES
ROUTE_THREADS, THREADS = 256, 256
TILE_TOKENS, TILE_ROWS, STAGES = 64, 128, 3
STAGE_BYTES = {
    "e4m3": TILE_TOKENS * 160 + TILE_ROWS * 80,
    "w8a8": (TILE_TOKENS + TILE_ROWS) * 80,
    "bf16": (TILE_TOKENS + TILE_ROWS) * 144,
}
NULL = {"none": 0}


def is_decode(shape: Shape) -> bool:
    """Whether the call takes the kernels for few tokens, which take activations as they are."""
    return not shape.quantized and shape.rows <= MAX_DECODE_TOKENS and shape.places <= MAX_DECODE_PLACES


def groups(shape: Shape) -> int:
    """Slots of experts, and the shared one."""
    return shape.stored_experts + (shape.shared > 0)


def tiles(shape: Shape) -> int:
    """At least the tiles of any routes."""
    return shape.places // TILE_TOKENS + groups(shape)


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the scratch arrays by name; enough for any call with fewer tokens too."""
    places = 4 * shape.places
    h = shape.places * shape.stride * (2 if shape.dtype == "bf16" else 4)
    arrays = {"slot": places, "weight": places, "h": h}
    if not is_decode(shape):
        arrays |= {"count": 4 * groups(shape), "place": places, "position": places}
        arrays |= {name: 4 * tiles(shape) for name in ("tile_slot", "tile_first", "tile_tokens")}
        arrays["rows"] = 2 * shape.places * shape.hidden
    if shape.quantized:  # x's, then h's
        groups_of = shape.rows * -(-shape.hidden // BLOCK), shape.places * -(-shape.stride // BLOCK)
        arrays |= {"codes": max(shape.rows * shape.hidden, shape.places * shape.stride), "scales": 4 * max(groups_of)}
    return arrays


def check(shape: Shape) -> None:
    """Raises BuildError for a shape that no kernel takes."""
    sizes = {"hidden": shape.hidden, "width": shape.width, "shared": shape.shared}
    found = ", ".join(f"{name} {size}" for name, size in sizes.items())
    require(shape.rows > 0 and min(shape.hidden, shape.width) > 0, found, "no empty axis")
    require(all(size % 16 == 0 for size in sizes.values()), found, "multiples of 16")
    require(0 < shape.chosen <= shape.experts, f"{shape.chosen} of {shape.experts} experts", "1 to all of them")
    require(shape.stored == "e4m3" or not shape.quantized, "E4M3 activations of bf16 experts", "bf16")


def experts(shape: Shape, at: dict[str, int]) -> list[Launch]:
    """One call. `at`: the op's tensors and the arrays of `workspace`, all aligned to 16 bytes."""
    check(shape)
    route = _route(shape, at)
    return [route, *(_decode(shape, at) if is_decode(shape) else _prefill(shape, at))]


def _route(shape: Shape, at: dict[str, int]) -> Launch:
    at = {"slot_expert": 0, "shared_expert_gate": 0} | at
    threads = min(ROUTE_THREADS, -(-shape.experts // 32) * 32)
    args = (
        *pointers(at, "x", "logits", "n_tokens", "slot_expert", "shared_expert_gate"),
        *ints(1),
        *pointers(at, "slot", "weight"),
        *ints(shape.tokens, shape.experts, shape.stored_experts, shape.chosen, shape.hidden),
    )
    candidates = -(-shape.experts // 32) * min(shape.chosen, 32)
    shared = 4 * (2 * shape.experts + 2 * shape.chosen + 2 * candidates + threads // 32)
    return Launch(f"moe_experts_route_{shape.dtype}", (shape.rows, 1, 1), threads, shared, args)


def _stored(shape: Shape, at: dict[str, int]) -> Arguments:
    """All weights, scales and their sizes."""
    routed = ("experts", "experts", "experts_scale") if shape.stored == "e4m3" else ("gate_up", "down", "none")
    shared, scales = ("none",) * 3, ("none",) * 3
    if shape.shared:
        shared = ("shared_gate", "shared_up", "shared_down")
        if shape.stored == "e4m3":
            scales = ("shared_gate_scale_inv", "shared_up_scale_inv", "shared_down_scale_inv")
    return (
        *pointers(NULL | at, *routed, *shared, *scales),
        *ints(shape.scale_dtype == "bf16", shape.stored_experts, shape.hidden, shape.width, shape.shared),
    )


def _decode(shape: Shape, at: dict[str, int]) -> list[Launch]:
    tile = next(t for t in TILES if shape.rows <= 8 * t)
    kind, tokens = f"{shape.dtype}_{shape.stored}_m{tile}", 8 * tile
    sizes = ints(shape.places, shape.choices, shape.stride)
    gate_up = (*pointers(at, "x", "slot", "h"), *_stored(shape, at), *sizes)
    down = (*pointers(at, "h", "slot", "weight", "y"), *_stored(shape, at), *sizes)
    of_warp, of_block = RING_BYTES + 4 * (tokens + 1), 4 * (3 * shape.places + 1 + shape.places * SUM_STRIDE)
    warps = min(MAX_WARPS[tile], max(MIN_WARPS, shape.choices), (SMALL_SHARED - of_block) // of_warp)
    shared = GATE_UP_WARPS * RING_BYTES + 4 * (shape.places + tokens + 1 + GATE_UP_WARPS * tokens * TILE_STRIDE)
    shared_down = warps * of_warp + of_block
    grid = (-(-shape.stride // HALF_ROWS), shape.places, 1)
    return [
        Launch(f"moe_experts_gate_up_{kind}", grid, 32 * GATE_UP_WARPS, shared, gate_up),
        Launch(f"moe_experts_down_{kind}", (-(-shape.hidden // ROWS), 1, 1), 32 * warps, shared_down, down),
    ]


def _prefill(shape: Shape, at: dict[str, int]) -> list[Launch]:
    require(shape.dtype == "bf16", f"{shape.dtype} activations of {shape.rows} tokens", "bf16")
    stored, order = _stored(shape, at), ("place", "tile_slot", "tile_first", "tile_tokens")
    partial = 4 * (THREADS // 32)
    arranged = (
        *pointers(at, "slot", "count", "place", "position", "tile_slot", "tile_first", "tile_tokens"),
        *ints(shape.places, groups(shape), tiles(shape)),
    )
    kind = "w8a8" if shape.quantized else shape.stored
    x, h = (("codes", "scales"),) * 2 if shape.quantized else (("x", "none"), ("h", "none"))
    gate_up = (*pointers(NULL | at, *x, *order, "h"), *stored, *ints(shape.choices, shape.stride))
    down = (*pointers(NULL | at, *h, "weight", *order, "rows"), *stored, *ints(shape.stride))
    count = shape.rows * shape.hidden
    shared = STAGES * STAGE_BYTES[kind] + 4 * TILE_TOKENS
    across = -(-shape.stride // (TILE_ROWS // 2)), -(-shape.hidden // TILE_ROWS)
    combined = (*pointers(at, "rows", "position", "y"), *ints(shape.choices, shape.hidden), ctypes.c_longlong(count))
    rounded = [_quantize(shape, at, of) for of in ("x", "h")] if shape.quantized else [None, None]
    made = [
        Launch("moe_experts_count", (groups(shape), 1, 1), THREADS, partial,
               (*pointers(at, "slot", "count"), *ints(shape.places))),
        Launch("moe_experts_arrange", (groups(shape), 1, 1), THREADS, partial, arranged),
        rounded[0],
        Launch(f"moe_experts_group_gate_up_{kind}", (tiles(shape), across[0], 1), THREADS, shared, gate_up),
        rounded[1],
        Launch(f"moe_experts_group_down_{kind}", (tiles(shape), across[1], 1), THREADS, shared, down),
        Launch("moe_experts_combine", (-(-count // (8 * THREADS)), 1, 1), THREADS, 0, combined),
    ]  # fmt: skip
    return [launch for launch in made if launch is not None]


def _quantize(shape: Shape, at: dict[str, int], of: str) -> Launch:
    """Codes and scales of x, or of h, whose rows are the ordered places."""
    rows, k = (shape.rows, shape.hidden) if of == "x" else (shape.places, shape.stride)
    order = ("none", "none") if of == "x" else ("slot", "position")
    sizes = ints(rows, k, shape.stored_experts, shape.width, shape.shared)
    args = (*pointers(NULL | at, of, *order, "codes", "scales"), *sizes)
    return Launch("moe_experts_quantize", (-(-rows * -(-k // BLOCK) // (THREADS // 32)), 1, 1), THREADS, 0, args)
