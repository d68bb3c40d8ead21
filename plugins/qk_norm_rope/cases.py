"""Calls of the normalised, rotated queries and keys that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from deltart.plugins.cases import PAIRS, SLOTS, Arrays, KernelCase, OpCall, op_call
from deltart.plugins.qk_norm_rope import inputs
from deltart.plugins.qk_norm_rope.launch import rope
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.tolerance import TOLERANCE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    heads, widths = (
        ((24, 4), (16, 2), (1, 1), (3, 1)),
        ((256, 32), (64, 8), (64, 32), (128, 4), (60, 8), (264, 8), (64, 40)),
    )
    for b, t, (h, kv), (d, p), eps, types in product(SLOTS, (1, 3, 8, 1000), heads, widths, (1e-6, 3e-5), PAIRS):
        sizes = {"B": b, "T": t, "Nqg": 2 * h * d, "Nkv": kv * d, "P": p}
        attributes = {"num_heads": h, "num_kv_heads": kv, "head_dim": d, "epsilon": eps}
        yield op_call(QK_NORM_ROPE, sizes, attributes, types)
    mixed = op_call(QK_NORM_ROPE, sizes, attributes, PAIRS[0])
    yield replace(mixed, dtypes={**mixed.dtypes, "k_weight": "f32"})


def timed(small: bool) -> Iterator[KernelCase]:
    """One token and long prompts of the 27B model, or `small` ones."""
    for tokens in (1, 9) if small else (1, 64, 8192):
        yield _case(inputs.Shape(tokens=tokens, heads=6 if small else 24))


def _case(shape: inputs.Shape) -> KernelCase:
    def expected(given: Arrays) -> Arrays:
        wide = (given[name].astype(np.float64) for name in ("q_gate", "k", "q_weight", "k_weight", "cos", "sin"))
        results = QK_NORM_ROPE.reference(*wide, shape.heads, shape.kv_heads, shape.head_dim, shape.epsilon)
        return dict(zip(("q", "k_out", "gate"), results, strict=True))

    return KernelCase(
        name=f"T={shape.tokens}",
        source=Path(__file__).parent / "kernel.cu",
        given=lambda seed: inputs.make(shape, seed),
        outputs=lambda: inputs.outputs(shape),
        launches=lambda at: [rope(shape, at)],
        expected=expected,
        tolerance=dict.fromkeys(("q", "k_out", "gate"), TOLERANCE[shape.dtype]),
    )


CALLS = {"QkNormRope": calls}
