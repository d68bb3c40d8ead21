"""Launch geometry of the block-FP8 linear in prefill: the tile kernels, their splits of K and their scratch."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.plugins.launch import Launch, ints, pointers, require

TILE = 128  # rows of the weight per tile; tokens of a tile of quantized activations
QUANTIZED = 32  # tokens of a block that quantizes
PAIR = 2 * TILE  # quantized activations are padded to whole pairs of tiles
ENOUGH_BLOCKS = 132  # the multiprocessors of an H100; a constant, so that equal calls give equal bits on every GPU
MAX_ITEMS = 2 * ENOUGH_BLOCKS  # tiles times splits, where K is split
MAX_SPLITS = 16
SPLIT_COST = 8  # of storing, reading and adding f32 parts, in blocks of K
HOPPER = 90


@dataclass(frozen=True)
class TileKernel:
    """A tile kernel: entry point, source, tokens per tile, threads and bytes of shared memory per block."""

    name: str
    source: str
    tokens: int
    threads: int
    shared_bytes: int

    def tiles(self, shape: Shape) -> int:
        """Tiles of y."""
        return -(-shape.rows // self.tokens) * -(-shape.n // TILE)


W8A16 = TileKernel("fp8_block_linear_prefill_w8a16", "prefill.cu", TILE, 256, 3 * TILE * (160 + 80))
W8A8 = TileKernel("fp8_block_linear_prefill_w8a8", "prefill.cu", TILE, 256, 3 * 2 * TILE * BLOCK)
# Four stages of three operand tiles and the activations' scales; their barriers.
W8A8_WGMMA = TileKernel(
    "fp8_block_linear_prefill_w8a8_wgmma", "prefill_wgmma.cu", PAIR, 384, 4 * (3 * TILE * BLOCK + 4 * PAIR) + 64
)


def w8a8_kernel(capability: int) -> TileKernel:
    """The W8A8 kernel of a GPU by its compute capability times ten: wgmma is in sm_90a alone."""
    return W8A8_WGMMA if capability == HOPPER else W8A8


def check(shape: Shape) -> None:
    """Raises BuildError for a shape that no kernel takes."""
    found = f"x {shape.rows} x {shape.k}, weight {shape.n} x {shape.k}"
    require(shape.rows > 0 and shape.n > 0 and shape.k > 0, found, "no empty axis")
    require(shape.k % 16 == 0, f"K = {shape.k}", "a multiple of 16")


def steps(shape: Shape, kernel: TileKernel, splits: int) -> int:
    """Blocks of K that the slowest multiprocessor of ENOUGH_BLOCKS multiplies one after the other."""
    return -(-splits * kernel.tiles(shape) // ENOUGH_BLOCKS) * -(-shape.k // (BLOCK * splits))


def splits(shape: Shape, kernel: TileKernel) -> int:
    """Parts of K, each with its own tiles: as many as shorten the longest queue by more than they cost."""
    blocks = -(-shape.k // BLOCK)
    able = [s for s in range(2, MAX_SPLITS + 1) if s * kernel.tiles(shape) <= MAX_ITEMS]
    able = [s for s in able if (s - 1) * -(-blocks // s) < blocks]  # none is empty
    return min([1, *able], key=lambda s: steps(shape, kernel, s) + (SPLIT_COST if s > 1 else 0))


def partial_bytes(shape: Shape, kernel: TileKernel) -> int:
    """Bytes of the split sums of this call."""
    count = splits(shape, kernel)
    return 4 * count * shape.rows * shape.n if count > 1 else 0


def max_partial_bytes(shape: Shape, tokens: int) -> int:
    """At least `partial_bytes` of this call and of any with fewer rows, for a kernel of up to `tokens` per tile."""
    return 4 * min(MAX_SPLITS * shape.rows * shape.n, MAX_ITEMS * tokens * TILE)


def quantized_bytes(shape: Shape) -> dict[str, int]:
    """Bytes of the quantized activations: E4M3 codes in tiles, and scales."""
    tokens, blocks = -(-shape.rows // PAIR) * PAIR, -(-shape.k // BLOCK)
    return {"codes": tokens * blocks * BLOCK, "x_scale": 4 * tokens * blocks}


def workspace(shape: Shape, kernel: TileKernel) -> dict[str, int]:
    """Bytes of the scratch arrays of `prefill` or `prefill_w8a8` where it needs any, by their names in `at`."""
    partial = partial_bytes(shape, kernel)
    return ({} if kernel is W8A16 else quantized_bytes(shape)) | ({"partial": partial} if partial else {})


def prefill(shape: Shape, kernel: TileKernel, at: dict[str, int], multiprocessors: int = ENOUGH_BLOCKS) -> list[Launch]:
    """The tiles of y by `kernel`, and the sum over the splits of K where there are any; any number of bf16 tokens.

    Args:
        at: weight weight_scale_inv y and partial; x, or the quantizer's codes and x_scale.
        multiprocessors: of the GPU; the blocks of W8A8_WGMMA, which take tiles until none is left.
    """
    check(shape)
    require(shape.dtype == "bf16", f"{shape.dtype} activations", "bf16")
    count = splits(shape, kernel)
    at = at | {"partial": at["partial"] if count > 1 else 0}
    args = (
        *pointers(at, *(("x",) if kernel is W8A16 else ("codes", "x_scale")), "weight", "weight_scale_inv"),
        *ints(shape.scale_dtype == "bf16"),
        *pointers(at, "y", "partial"),
        *ints(shape.rows, shape.n, shape.k),
    )
    grid = (-(-shape.rows // kernel.tokens), -(-shape.n // TILE), count)
    if kernel is W8A8_WGMMA:
        args, grid = (*args, *ints(count)), (min(count * kernel.tiles(shape), multiprocessors), 1, 1)
    launches = [Launch(kernel.name, grid, kernel.threads, kernel.shared_bytes, args)]
    if count > 1:
        size = shape.rows * shape.n
        args = (*pointers(at, "partial", "y"), *ints(count, size))
        launches.append(Launch("fp8_block_linear_add_splits", (-(-size // 256), 1, 1), 256, 0, args))
    return launches


def prefill_w8a8(
    shape: Shape, kernel: TileKernel, at: dict[str, int], multiprocessors: int = ENOUGH_BLOCKS
) -> list[Launch]:
    """As `prefill`, activations rounded to E4M3 per token and 128 of K first. `at`: as `prefill`, and x."""
    check(shape)
    args = (*pointers(at, "x", "codes", "x_scale"), *ints(shape.rows, shape.k))
    quantize = Launch(
        "fp8_block_linear_quantize", (-(-shape.k // BLOCK), -(-shape.rows // PAIR) * PAIR // QUANTIZED, 1), 256, 0, args
    )
    return [quantize, *prefill(shape, kernel, at, multiprocessors)]
