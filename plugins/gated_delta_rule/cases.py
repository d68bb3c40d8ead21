"""Calls of the gated delta rule that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from deltart.plugins.cases import LIMITS, PAIRS, Arrays, KernelCase, OpCall, op_call
from deltart.plugins.dtypes import poisoned
from deltart.plugins.gated_delta_rule import inputs
from deltart.plugins.gated_delta_rule.norm import Norm, decode_norm
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_NORM, GATED_DELTA_RULE
from deltart.plugins.tolerance import TOLERANCE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens, heads = (0, 1, 8, 9, 33, 64, 65, 1000, 2049), ((16, 48), (1, 3), (16, 32), (3, 4))
    widths = ((128, 128), (64, 1024), (64, 16), (128, 32), (128, 8), (128, 12))
    for b, t, (hk, hv), (dk, dv), types in product((1, 7, 8, 85), tokens, heads, widths, PAIRS):
        attributes = {"num_k_heads": hk, "num_v_heads": hv, "head_k_dim": dk, "head_v_dim": dv}
        for limit in LIMITS if t > 8 else LIMITS[:1]:
            sizes = {"B": b, "T": t, "C": 2 * hk * dk + hv * dv}
            yield op_call(GATED_DELTA_RULE, sizes, attributes, types, limit)


def timed_normed(small: bool) -> Iterator[KernelCase]:
    """The norm behind it, as the 27B model decodes and speculates, or `small`; (slots, tokens)."""
    key_heads, value_heads = (1, 3) if small else (16, 48)
    for slots, tokens in ((2, 1), (1, 4)) if small else ((1, 1), (64, 1), (1, 4)):
        yield _normed(inputs.Shape(slots, tokens, key_heads, value_heads), Norm())


def _normed(shape: inputs.Shape, norm: Norm) -> KernelCase:
    def expected(given: Arrays) -> Arrays:
        wide = (
            given[t.name] if t.dtype == "I32" else given[t.name].astype(np.float64) for t in GATED_DELTA_NORM.inputs
        )
        heads = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
        return dict(zip(("y", "S"), GATED_DELTA_NORM.reference(*wide, *heads, norm.epsilon), strict=True))

    return KernelCase(
        name=f"delta rule, norm B={shape.slots} T={shape.tokens}",
        source=Path(__file__).parent / "norm.cu",
        given=lambda seed: inputs.make(shape, seed) | inputs.gating(shape, seed, norm.weight_dtype),
        outputs=lambda: {"y": poisoned((shape.slots, shape.tokens, shape.value_heads * shape.value_dim), shape.dtype)},
        launches=lambda at: [decode_norm(shape, norm, at)],
        expected=expected,
        tolerance={"y": TOLERANCE[shape.dtype], "S": TOLERANCE["state"]},
        rewritten=("S",),
    )


CALLS = {"GatedDeltaRule": calls}
