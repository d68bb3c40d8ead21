"""Attention of many tokens by warpgroup products, which sm_90a alone has."""

from __future__ import annotations

from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.gated_attention.launch import DECODE_TOKENS
from deltart.plugins.launch import Launch, ints, pointers, require

HOPPER = 90  # the compute capability, times ten
HEAD_DIM = 256
ROWS, KEYS, RING = 128, 80, 4  # query rows of a block, keys of a tile, tiles of keys or values on their way
BLOCK = 384
SHARED_BYTES = 2 * HEAD_DIM * (ROWS + RING * KEYS) + 16 * RING
ENOUGH_BLOCKS = 66  # half of an H100's multiprocessors: fewer tokens leave more idle than the faster products gain


def blocks(shape: Shape) -> int:
    """Of the launch."""
    return -(-shape.tokens * (shape.heads // shape.kv_heads) // ROWS) * shape.slots * shape.kv_heads


def serves(shape: Shape, capability: int) -> bool:
    """Whether the calls of this shape are worth it on a GPU of that compute capability, times ten."""
    fits = shape.head_dim == HEAD_DIM and shape.cache_dtype == "bf16" and shape.heads % shape.kv_heads == 0
    return capability == HOPPER and fits and shape.tokens > DECODE_TOKENS and blocks(shape) >= ENOUGH_BLOCKS


def attention(shape: Shape, at: dict[str, int]) -> Launch:
    """`at`: as launch.attention, of a bf16 cache, without a workspace."""
    require(shape.head_dim == HEAD_DIM and shape.cache_dtype == "bf16", "another head or cache", "256, bf16")
    names = ("q", "k", "v", "gate", "k_cache", "v_cache", "page_table", "past_len", "n_tokens", "o")
    args = (
        *pointers({"page_table": 0} | at, *names),
        *ints(shape.tokens, shape.heads, shape.kv_heads, shape.page_size or shape.capacity, shape.max_pages),
    )
    each = shape.slots * shape.kv_heads
    return Launch("gated_attention_prefill_wgmma", (blocks(shape) // each, each, 1), BLOCK, SHARED_BYTES, args)
