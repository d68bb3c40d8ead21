"""Calls of the residual RMS norm that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deltart.plugins.cases import Arrays, KernelCase
from deltart.plugins.residual_rms_norm import inputs
from deltart.plugins.residual_rms_norm.launch import norm
from deltart.plugins.residual_rms_norm.reference import residual_rms_norm as reference
from deltart.plugins.tolerance import TOLERANCE


def timed(small: bool) -> Iterator[KernelCase]:
    """One token and long prompts of the 27B model, or `small` ones."""
    for tokens in (1, 9) if small else (1, 64, 8192):
        yield _case(inputs.Shape(tokens, 1000 if small else 5120))


def _case(shape: inputs.Shape) -> KernelCase:
    def expected(given: Arrays) -> Arrays:
        x, h, weight = (given[name].astype(np.float64) for name in ("x", "h", "weight"))
        return dict(zip(("y", "h"), reference(x, h, weight, shape.epsilon), strict=True))

    return KernelCase(
        name=f"T={shape.rows}",
        source=Path(__file__).parent / "kernel.cu",
        given=lambda seed: inputs.make(shape, seed),
        outputs=lambda: inputs.outputs(shape),
        launches=lambda at: [norm(shape, at)],
        expected=expected,
        tolerance=dict.fromkeys(("y", "h"), TOLERANCE[shape.dtype]),
        rewritten=("h",),
    )
