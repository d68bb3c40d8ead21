"""The section of the LM head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.kernels.device import Buffers
from bench.kernels.run import Run, measure, once
from bench.kernels.table import Row
from deltart.plugins import lm_head
from deltart.plugins.launch import Launch
from deltart.plugins.lm_head import inputs, launch
from deltart.plugins.lm_head.reference import best
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SOURCE = Path(lm_head.__file__).parent / "kernel.cu"
SAMPLED_ROWS = 256  # compared with float64


def head(run: Run) -> Iterator[Row]:
    """The LM head with its best tokens: bf16, block FP8, and a draft head of 32768 rows."""
    sizes = {"vocabulary": 1000, "k": 208, "limit": 900} if run.small else {}
    whole = inputs.Shape(keep=20, **sizes)
    subset = replace(whole, keep=1, subset=300 if run.small else 32768)
    for shape in (whole, replace(whole, rows=8), replace(whole, weight_dtype="e4m3"), subset):
        row = Row("head", f"M={shape.rows} {shape.weight_dtype} of {shape.scored} keep={shape.keep}")
        arrays = inputs.make(shape, run.seed) | inputs.outputs(shape)
        arrays |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace(shape).items()}

        def plan(b: Buffers, shape: inputs.Shape = shape) -> list[Launch]:
            return launch.head(shape, b.at)

        buffers = once(run, SOURCE, arrays, plan)
        ids = arrays.get("ids", np.arange(shape.vocabulary, dtype=np.int32))
        _, expected = best(buffers.read("logits").astype(np.float64), ids, shape.limit, shape.keep)
        row.passed = bool((buffers.read("best_ids") == expected).all())
        if shape.weight_dtype == "bf16":
            rows = np.random.default_rng(run.seed).integers(0, shape.scored, SAMPLED_ROWS)
            weight = arrays["weight"][ids[rows]].astype(np.float64)
            row.error = relative_rms(buffers.read("logits")[:, rows], arrays["x"].astype(np.float64) @ weight.T)
            row.passed &= row.error <= TOLERANCE["f32"]
        moved = arrays["weight"].nbytes * shape.scored // shape.vocabulary + arrays["logits"].nbytes
        yield measure(run, row, SOURCE, arrays, plan, moved, 0, {})
