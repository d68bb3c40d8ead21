"""Calls of the gated attention that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from deltart.plugins.cases import PAIRS, SLOTS, OpCall, op_call
from deltart.plugins.gated_attention.op import GATED_ATTENTION


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens, heads = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 48, 49, 200), ((24, 4), (16, 2), (6, 2), (1, 1), (16, 1), (9, 9))
    refused = ((5, 2), (34, 2))
    for b, t, (h, kv), d, types in product(SLOTS, tokens, heads + refused, (64, 96, 128, 256), PAIRS[1:3]):
        sizes = {"B": b, "T": t, "Nq": h * d, "Nkv": kv * d, "capacity": 64 * b + 4000}
        attributes = {"num_heads": h, "num_kv_heads": kv, "head_dim": d}
        yield op_call(GATED_ATTENTION, sizes, attributes, types)


CALLS = {"GatedAttention": calls}
