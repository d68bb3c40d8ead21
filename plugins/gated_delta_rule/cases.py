"""Calls of the gated delta rule that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from deltart.plugins.cases import LIMITS, PAIRS, OpCall, op_call
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens, heads = (0, 1, 8, 9, 33, 64, 65, 1000, 2049), ((16, 48), (1, 3), (16, 32), (3, 4))
    widths = ((128, 128), (64, 1024), (64, 16), (128, 32), (128, 8), (128, 12))
    for b, t, (hk, hv), (dk, dv), types in product((1, 7, 8, 85), tokens, heads, widths, PAIRS):
        attributes = {"num_k_heads": hk, "num_v_heads": hv, "head_k_dim": dk, "head_v_dim": dv}
        for limit in LIMITS if t > 8 else LIMITS[:1]:
            sizes = {"B": b, "T": t, "C": 2 * hk * dk + hv * dv}
            yield op_call(GATED_DELTA_RULE, sizes, attributes, types, limit)


CALLS = {"GatedDeltaRule": calls}
