"""Calls of the gated RMS norm that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from deltart.plugins.cases import PAIRS, SLOTS, Arrays, KernelCase, OpCall, op_call
from deltart.plugins.gated_rms_norm import inputs
from deltart.plugins.gated_rms_norm.launch import norm
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.tolerance import TOLERANCE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    for b, t, heads, d, eps, types in product(
        SLOTS, (1, 3, 8, 1000), (1, 3, 48), (4, 6, 64, 128, 256, 512, 516), (1e-6, 3e-5), PAIRS
    ):
        yield op_call(GATED_RMS_NORM, {"B": b, "T": t, "N": heads * d, "D": d}, {"epsilon": eps}, types)


def timed(small: bool) -> Iterator[KernelCase]:
    """One token and long prompts of the 27B model, or `small` ones."""
    for tokens in (1, 9) if small else (1, 64, 8192):
        yield _case(inputs.Shape(tokens=tokens, heads=3 if small else 48))


def _case(shape: inputs.Shape) -> KernelCase:
    def expected(given: Arrays) -> Arrays:
        wide = (given[name].astype(np.float64) for name in ("x", "weight", "z"))
        return {"y": GATED_RMS_NORM.reference(*wide, shape.epsilon)[0]}

    return KernelCase(
        name=f"T={shape.tokens}",
        source=Path(__file__).parent / "kernel.cu",
        given=lambda seed: inputs.make(shape, seed),
        outputs=lambda: inputs.outputs(shape),
        launches=lambda at: [norm(shape, at)],
        expected=expected,
        tolerance={"y": TOLERANCE[shape.dtype]},
    )


CALLS = {"GatedRMSNorm": calls}
