"""Attention of a few tokens from the projections on: the heads' norms and rotation run in its blocks, and where a block
holds all of a slot's queries, so does what puts the parts of the keys together."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.gated_attention.launch import BLOCK, DECODE_TOKENS, HEAD_DIMS, Plan, combine
from deltart.plugins.launch import Launch, ints, pointers, require

MOST_GROUP = 16  # query heads of a KV head
MOST_SUMS = 512 << 10  # bytes that a block adds alone: 4 us or so of one multiprocessor, where a launch costs 2 to 3


@dataclass(frozen=True)
class Turn:
    """The heads' norms and rotation: their weights' type ("f32" or "bf16"), 2 P dimensions that turn, epsilon."""

    rotary_dim: int = 64
    weight_dtype: str = "bf16"
    epsilon: float = 1e-6


def can_join(shape: Shape) -> bool:
    """Whether norms and rotation in front of a call of this shape can run in its launch."""
    fits = shape.head_dim in HEAD_DIMS and shape.heads % shape.kv_heads == 0
    return fits and shape.heads // shape.kv_heads <= MOST_GROUP and 1 <= shape.tokens <= DECODE_TOKENS


def combines(by: Plan) -> bool:
    """Whether the block that is done last adds the parts: where 16 rows hold all queries of a KV head, and their sums
    are not too many for one multiprocessor."""
    shape = by.shape
    sums = 4 * shape.tokens * (shape.heads // shape.kv_heads) * by.splits * shape.head_dim
    return by.splits > 1 and by.row_tiles == 1 and sums <= MOST_SUMS


def attention(by: Plan, turn: Turn, at: dict[str, int]) -> list[Launch]:
    """`at`: as launch.attention without q and gate, k before its norm, and q_gate q_weight k_weight cos sin arrived, an
    int of each slot and KV head that is 0 before and after."""
    shape, turned = by.shape, turn.rotary_dim
    found = f"{shape.tokens} tokens, heads of {shape.head_dim}"
    require(can_join(shape), found, f"up to {DECODE_TOKENS}, one of {HEAD_DIMS}")
    require(0 < turned <= shape.head_dim and turned % 16 == 0, f"{turned} rotary dimensions", "a multiple of 16")
    optional = dict.fromkeys(("workspace", "page_table", "k_scale", "v_scale"), 0) | at
    optional |= {} if combines(by) else {"arrived": 0}
    caches = ("v", "k_cache", "v_cache", "page_table", "k_scale", "v_scale", "past_len", "n_tokens", "o", "workspace")
    args = (
        *pointers(optional, "q_gate", "k", "q_weight", "k_weight"),
        *ints(turn.weight_dtype == "bf16"),
        *pointers(optional, "cos", "sin", *caches, "arrived"),
        *ints(shape.tokens, shape.heads, shape.kv_heads, shape.page_size or shape.capacity, shape.max_pages, turned),
        ctypes.c_float(turn.epsilon),
    )
    kernel = f"gated_attention_rope_{shape.cache_dtype}_d{shape.head_dim}_m{by.row_tiles}"
    launches = [Launch(kernel, by.grid, BLOCK, by.shared_bytes, args)]
    if by.splits > 1 and not combines(by):
        launches.append(combine(by, "gated_attention_rope_combine", "q_gate", at))
    return launches
