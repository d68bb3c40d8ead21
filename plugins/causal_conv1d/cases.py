"""Calls of the causal convolution that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from deltart.plugins.cases import PAIRS, SLOTS, KernelCase, OpCall, op_call
from deltart.plugins.causal_conv1d import inputs
from deltart.plugins.causal_conv1d.launch import forward
from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.tolerance import TOLERANCE


def calls() -> Iterator[OpCall]:
    """Launches to compare: see cases.calls_of."""
    tokens, channels = (0, 1, 2, 8, 9, 15, 16, 17, 33, 100, 5000), (4, 8, 12, 64, 256, 1000, 10240, 10241)
    for b, t, c, types in product(SLOTS, tokens, channels, PAIRS):
        yield op_call(CAUSAL_CONV1D, {"B": b, "T": t, "C": c, "1": 1, "W": 4, "W-1": 3}, {}, types)


def timed(small: bool) -> Iterator[KernelCase]:
    """Decode and prefill of the 27B model, or `small` ones; (slots, tokens)."""
    for slots, tokens in ((2, 1), (2, 65)) if small else ((1, 1), (64, 1), (64, 4), (1, 2048), (1, 8192)):
        yield _case(inputs.Shape(slots, tokens, 256 if small else 10240))


def _case(shape: inputs.Shape) -> KernelCase:
    return KernelCase(
        name=f"B={shape.slots} T={shape.tokens}",
        source=Path(__file__).parent / "kernel.cu",
        given=lambda seed: inputs.make(shape, seed),
        outputs=lambda: inputs.outputs(shape),
        launches=lambda at: [forward(shape, at)],
        expected=lambda given: dict(zip(("y", "state"), inputs.expected(given), strict=True)),
        tolerance={"y": TOLERANCE[shape.dtype], "state": 0.0},
        rewritten=("state",),
    )


CALLS = {"CausalConv1d": calls}
