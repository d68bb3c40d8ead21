"""Launch geometry of the routed experts: few tokens read each matrix once, many take the grouped tiles."""

from __future__ import annotations

from deltart.plugins.fp8_linear.prefill import ENOUGH_BLOCKS
from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.moe_experts import prefill
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.stored import stored

TILES = (1, 2, 8)  # tokens that chose one expert, in eights
MAX_DECODE_TOKENS, MAX_DECODE_PLACES = 8 * TILES[-1], 1024
ALIGNMENT = 256  # of the arrays in the workspace
TILE_STRIDE, SUM_STRIDE = 20, 17
RING_BYTES = 4 * 2048  # of a warp
SMALL_SHARED = 99 << 10  # bytes of shared memory that every GPU gives a block
HALF_ROWS, ROWS = 8, 16  # of a weight: a block of gate_up, and of down
GATE_UP_WARPS, MIN_WARPS = 4, 4
MAX_WARPS = {1: 10, 2: 10, 8: 8}  # of down, by TILES
ROUTE_THREADS = 256


def is_decode(shape: Shape) -> bool:
    """Whether the call takes the kernels for few tokens, which take activations as they are."""
    return not shape.quantized and shape.rows <= MAX_DECODE_TOKENS and shape.places <= MAX_DECODE_PLACES


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the scratch arrays by name; enough for any call with fewer tokens too."""
    places = 4 * shape.places
    h = shape.places * shape.stride * (2 if shape.dtype == "bf16" else 4)
    arrays = {"slot": places, "weight": places, "h": h}
    return arrays if is_decode(shape) else arrays | prefill.workspace(shape)


def check(shape: Shape) -> None:
    """Raises BuildError for a shape that no kernel takes."""
    sizes = {"hidden": shape.hidden, "width": shape.width, "shared": shape.shared}
    found = ", ".join(f"{name} {size}" for name, size in sizes.items())
    require(shape.rows > 0 and min(shape.hidden, shape.width) > 0, found, "no empty axis")
    require(all(size % 16 == 0 for size in sizes.values()), found, "multiples of 16")
    require(0 < shape.chosen <= shape.experts, f"{shape.chosen} of {shape.experts} experts", "1 to all of them")
    require(shape.stored == "e4m3" or not shape.quantized, "E4M3 activations of bf16 experts", "bf16")


def experts(
    shape: Shape, at: dict[str, int], capability: int = 0, multiprocessors: int = ENOUGH_BLOCKS
) -> list[Launch]:
    """One call.

    Args:
        at: the op's tensors and the arrays of `workspace`, all aligned to 16 bytes.
        capability: the GPU's compute capability times ten; 0 for what any GPU runs.
        multiprocessors: of the GPU.
    """
    check(shape)
    route = _route(shape, at)
    if is_decode(shape):
        return [route, *_decode(shape, at)]
    return [route, *prefill.prefill(shape, at, prefill.kernel_of(shape, capability), multiprocessors)]


def source(shape: Shape, capability: int = 0) -> str:
    """The file that holds the kernels of `experts`."""
    return "decode.cu" if is_decode(shape) else prefill.kernel_of(shape, capability).source


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


def _tile(shape: Shape) -> int:
    return next(t for t in TILES if shape.rows <= 8 * t)


def down_block(shape: Shape, least: int = MIN_WARPS) -> tuple[int, int]:
    """Warps of a block of down, `least` or more where there is room for them, and its bytes of shared memory."""
    tile = _tile(shape)
    of_warp, of_block = RING_BYTES + 4 * (8 * tile + 1), 4 * (3 * shape.places + 1 + shape.places * SUM_STRIDE)
    warps = min(MAX_WARPS[tile], max(least, shape.choices), (SMALL_SHARED - of_block) // of_warp)
    return warps, warps * of_warp + of_block


def _decode(shape: Shape, at: dict[str, int]) -> list[Launch]:
    tile = _tile(shape)
    kind, tokens = f"{shape.dtype}_{shape.stored}_m{tile}", 8 * tile
    sizes = ints(shape.places, shape.choices, shape.stride)
    gate_up = (*pointers(at, "x", "slot", "h"), *stored(shape, at), *sizes)
    down = (*pointers(at, "h", "slot", "weight", "y"), *stored(shape, at), *sizes)
    warps, shared_down = down_block(shape)
    shared = GATE_UP_WARPS * RING_BYTES + 4 * (shape.places + tokens + 1 + GATE_UP_WARPS * tokens * TILE_STRIDE)
    grid = (-(-shape.stride // HALF_ROWS), shape.places, 1)
    return [
        Launch(f"moe_experts_gate_up_{kind}", grid, 32 * GATE_UP_WARPS, shared, gate_up),
        Launch(f"moe_experts_down_{kind}", (-(-shape.hidden // ROWS), 1, 1), 32 * warps, shared_down, down),
    ]
