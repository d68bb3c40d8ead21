"""Calls of the LM head that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from deltart.plugins.cases import PAIRS, SLOTS, OpCall, op_call
from deltart.plugins.lm_head.op import LM_HEAD


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    rows, vocabularies, widths = (1, 2, 8, 9, 16), (1, 127, 128, 129, 2560, 248320), (16, 128, 130, 5120)
    for b, rows_of_slot, v, k, types in product(SLOTS, rows, vocabularies, widths, PAIRS):
        yield op_call(LM_HEAD, {"B": b, "L": rows_of_slot, "V": v, "K": k}, {}, types)


CALLS = {"LmHead": calls}
