"""Launch geometry of the int4 linear in decode, alone, gated in pairs and with logits in f32."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.launch import Arguments, Launch, ints, pointers, require

TILES = (1, 2, 4)  # tokens per block, in eights
ROWS = 16  # of the weight, per warp
BLOCK = 256  # of K, per warp and stage
TILE_STRIDE = 20
RING_BYTES = 3 * (16 * 128 + 16 * 36)  # of a warp: three stages of 16 rows and their scales
ENOUGH_WARPS = 2048
MAX_WARPS = 4
GROUPS = (32, 64, 128, 256)  # values that share a scale
PIECE = 32  # values in 16 bytes
SCALE_TYPES = ("f32", "bf16", "f16")  # as the kernels number them


@dataclass(frozen=True)
class Split:
    """How a block divides its work: tokens (in eights), 16-row groups of each weight, parts of K, and weights."""

    tiles: int
    row_groups: int
    parts: int
    weights: int = 1
    ring_bytes: int = RING_BYTES

    @property
    def warps(self) -> int:
        return self.row_groups * self.parts * self.weights

    @property
    def shared_bytes(self) -> int:
        return self.warps * (4 * 8 * self.tiles * TILE_STRIDE + self.ring_bytes)


def split(shape: Shape, weights: int = 1) -> Split:
    """As many parts of K as fill the GPU with warps when there is one row; they follow from the weight alone, so a
    row's sums are the same whatever rows share the call."""
    tiles = next((t for t in TILES if shape.rows <= 8 * t), TILES[-1])
    warps, parts, limit = weights * -(-shape.n // ROWS), 1, min(MAX_WARPS // weights, -(-shape.k // BLOCK))
    while 2 * parts <= limit and warps * parts < ENOUGH_WARPS:
        parts *= 2
    row_groups = 1 if tiles <= 2 else MAX_WARPS // (parts * weights)
    return Split(tiles, row_groups, parts, weights)


def check(shape: Shape) -> None:
    """Raises BuildError for a shape that no kernel takes."""
    found = f"x {shape.rows} x {shape.k}, weight {shape.n} x {shape.k}"
    require(shape.rows > 0 and shape.n > 0 and shape.k > 0, found, "no empty axis")
    require(shape.group in GROUPS, f"int4 groups of {shape.group}", f"{', '.join(map(str, GROUPS))} values a group")
    require(shape.k % shape.group == 0, f"K = {shape.k}", f"a multiple of the group, {shape.group}")


def layout(shape: Shape) -> Arguments:
    """Scales of a row, and the power of two of 32-value pieces that share one."""
    return ints(shape.groups, (shape.group // PIECE).bit_length() - 1)


def scale_type(shape: Shape) -> Arguments:
    """The type of the scales, as the kernels number it."""
    return ints(SCALE_TYPES.index(shape.scale_dtype))


def decode(shape: Shape, at: dict[str, int], by: Split | None = None) -> Launch:
    """Any number of tokens, meant for 1 to 64. `at`: x weight_groups weight_scale y, all aligned to 16 bytes."""
    return _product("decode", shape, ("weight_groups", "weight_scale"), at, by or split(shape))


def logits(shape: Shape, at: dict[str, int]) -> Launch:
    """As `decode`, with y in f32 whatever x is."""
    kernel = "decode" if shape.dtype == "f32" else "logits"
    return _product(kernel, shape, ("weight_groups", "weight_scale"), at, split(shape))


def decode_gate_up(shape: Shape, at: dict[str, int]) -> Launch:
    """y = silu(x W^T) * (x up^T), tokens as `decode`. `at`: as `decode`, and up_groups up_scale, which have the shapes
    and types of weight_groups and weight_scale."""
    weights = ("weight_groups", "weight_scale", "up_groups", "up_scale")
    return _product("gate_up", shape, weights, at, split(shape, 2))


def _product(kernel: str, shape: Shape, weights: tuple[str, ...], at: dict[str, int], by: Split) -> Launch:
    check(shape)
    args = (
        *pointers(at, "x", *weights),
        *scale_type(shape),
        *pointers(at, "y"),
        *ints(shape.rows, shape.n, shape.k),
        *layout(shape),
        *ints(by.row_groups),
    )
    grid = (-(-shape.rows // (8 * by.tiles)), -(-shape.n // (ROWS * by.row_groups)), 1)
    return Launch(f"int4_linear_{kernel}_{shape.dtype}_m{by.tiles}", grid, 32 * by.warps, by.shared_bytes, args)
