"""Launch geometry of the gated attention: query rows per block, and splits of the keys."""

from __future__ import annotations

from dataclasses import dataclass

from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.launch import Launch, ints, pointers, require

HEAD_DIMS = (64, 128, 256)
ROW_TILES = (1, 3)  # of 16 query rows; three at head 256 fit the 99 KiB of the small GPUs
KEYS = 32  # per tile
BLOCK = 128
BLOCKS = 264  # in all, two for each multiprocessor of an H100
MAX_SPLITS = 128
DECODE_BLOCKS = 256  # of one slot's decode: KV heads x splits
COMBINERS = 4  # parts of the splits that are added side by side
DECODE_TOKENS = 8  # up to as many a token's sums are the same whatever else is in the call


@dataclass(frozen=True)
class Plan:
    """How a shape is cut up: 16-row tiles per block, and parts of the keys, into which the kernel deals those that a
    token sees. Both follow from the sizes that a captured graph fixes, never from the capacity or the lengths."""

    shape: Shape
    row_tiles: int
    splits: int

    @property
    def token_tiles(self) -> int:
        """Blocks along the tokens."""
        return -(-self.shape.tokens // (16 * self.row_tiles // (self.shape.heads // self.shape.kv_heads)))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Of the attention."""
        return (self.splits, self.token_tiles, self.shape.slots * self.shape.kv_heads)

    @property
    def shared_bytes(self) -> int:
        return (16 * self.row_tiles + 4 * KEYS) * (self.shape.head_dim + 8) * 2 + 16 * self.row_tiles * (KEYS + 8) * 4

    def workspace_bytes(self) -> int:
        """Bytes of scratch memory: the splits' sums, maxima and weights. None with one split."""
        rows = self.shape.slots * self.shape.tokens * self.shape.heads * self.splits
        return 4 * rows * (self.shape.head_dim + 2) if self.splits > 1 else 0


def plan(shape: Shape, splits: int = 0) -> Plan:
    """The fewest rows that hold all tokens, else the most; and `splits`, or what follows from the model alone for
    decode and speculation, and for more tokens as many as fill the GPU."""
    group = shape.heads // shape.kv_heads
    require(shape.head_dim in HEAD_DIMS, f"heads of {shape.head_dim}", f"one of {HEAD_DIMS}")
    require(
        shape.heads % shape.kv_heads == 0 and group <= 16,
        f"{shape.heads} heads over {shape.kv_heads}",
        "1 to 16 query heads per KV head",
    )
    tiles = next((t for t in ROW_TILES if 16 * t // group >= shape.tokens), ROW_TILES[-1])
    blocks = shape.slots * shape.kv_heads * Plan(shape, tiles, 1).token_tiles
    most = DECODE_BLOCKS // shape.kv_heads if shape.tokens <= DECODE_TOKENS else BLOCKS // blocks
    limit = max(1, min(MAX_SPLITS, most))
    return Plan(shape, tiles, splits or limit)


def attention(by: Plan, at: dict[str, int]) -> list[Launch]:
    """Any number of tokens. `at`: q k v gate k_cache v_cache past_len n_tokens o, workspace (by.workspace_bytes()),
    k_scale and v_scale for an E4M3 cache, page_table for a paged one."""
    shape = by.shape
    optional = dict.fromkeys(("workspace", "page_table", "k_scale", "v_scale"), 0) | at
    args = (
        *pointers(
            optional,
            "q",
            "k",
            "v",
            "gate",
            "k_cache",
            "v_cache",
            "page_table",
            "k_scale",
            "v_scale",
            "past_len",
            "n_tokens",
            "o",
            "workspace",
        ),
        *ints(shape.tokens, shape.heads, shape.kv_heads, shape.page_size or shape.capacity, shape.max_pages),
    )
    kernel = f"gated_attention_{shape.cache_dtype}_d{shape.head_dim}_m{by.row_tiles}"
    launches = [Launch(kernel, by.grid, BLOCK, by.shared_bytes, args)]
    if by.splits > 1:
        launches.append(combine(by, "gated_attention_combine", "gate", at))
    return launches


def combine(by: Plan, kernel: str, gate: str, at: dict[str, int]) -> Launch:
    """What puts the parts of the keys together. `at`: workspace past_len n_tokens o, and the tensor `gate`."""
    shape = by.shape
    args = (*pointers(at, "workspace", gate, "past_len", "n_tokens", "o"), *ints(by.splits, shape.head_dim))
    grid, threads = (shape.heads, shape.tokens, shape.slots), COMBINERS * shape.head_dim // 4
    return Launch(kernel, grid, threads, 4 * COMBINERS * (shape.head_dim + 1), args)
