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
from deltart.plugins.lm_head.reference import best, dequantized, quantize
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SOURCE = Path(lm_head.__file__).parent / "kernel.cu"
QUANTIZE = SOURCE.with_name("quantize.cu")
SAMPLED_ROWS = 256  # compared with float64


def head(run: Run) -> Iterator[Row]:
    """The LM head with its best tokens: bf16 and E4M3, at both models' widths, and a draft head of 32768 rows."""
    sizes = {"vocabulary": 1000, "k": 208, "limit": 900} if run.small else {}
    whole = inputs.Shape(keep=20, **sizes)
    subset = replace(whole, keep=1, subset=300 if run.small else 32768)
    fp8, narrow = replace(whole, weight_dtype="e4m3"), replace(whole, k=144 if run.small else 2048)
    shapes = (whole, replace(whole, rows=8), fp8, replace(fp8, rows=8), subset)
    for shape in (*shapes, narrow, replace(narrow, weight_dtype="e4m3")):
        width = f" K={shape.k}" if shape.k == narrow.k else ""
        row = Row("head", f"M={shape.rows} {shape.weight_dtype} of {shape.scored}{width} keep={shape.keep}")
        arrays = inputs.make(shape, run.seed) | inputs.outputs(shape)
        arrays |= {name: np.zeros(size, np.uint8) for name, size in launch.workspace(shape).items()}

        def plan(b: Buffers, shape: inputs.Shape = shape) -> list[Launch]:
            return launch.head(shape, b.at)

        buffers = once(run, SOURCE, arrays, plan)
        ids = arrays.get("ids", np.arange(shape.vocabulary, dtype=np.int32))
        _, expected = best(buffers.read("logits").astype(np.float64), ids, shape.limit, shape.keep)
        row.passed = bool((buffers.read("best_ids") == expected).all())
        rows = np.random.default_rng(run.seed).integers(0, shape.scored, SAMPLED_ROWS)
        weight = arrays["weight"][ids[rows]].astype(np.float64)
        if shape.weight_dtype == "e4m3":
            weight = dequantized(weight, arrays["weight_scale"][ids[rows]])
        row.error = relative_rms(buffers.read("logits")[:, rows], arrays["x"].astype(np.float64) @ weight.T)
        row.passed &= row.error <= TOLERANCE["f32"]
        held = sum(arrays[name].nbytes for name in ("weight", "weight_scale") if name in arrays)
        moved = held * shape.scored // shape.vocabulary + arrays["logits"].nbytes
        yield measure(run, row, SOURCE, arrays, plan, moved, 0, {})
    yield _quantized(run)


def _quantized(run: Run) -> Row:
    """A piece of the head as a load takes it: 64 MiB of the 27B's."""
    shape = inputs.Shape(vocabulary=300, k=208) if run.small else inputs.Shape(vocabulary=6553)
    weight = inputs.make(shape, run.seed)["weight"]
    codes, scale = quantize(weight)
    arrays = {"weight": weight, "codes": np.zeros(codes.shape, np.uint8), "scale": np.zeros(scale.shape, np.uint16)}

    def plan(b: Buffers) -> list[Launch]:
        return [launch.quantize(shape.vocabulary, shape.k, b.at)]

    row, buffers = Row("head", f"{shape.vocabulary} rows to e4m3"), once(run, QUANTIZE, arrays, plan)
    found = buffers.read("codes").view(codes.dtype), buffers.read("scale").view(scale.dtype)
    wide = weight.astype(np.float64)
    row.error = relative_rms(dequantized(*found), wide)
    row.passed = row.error <= (1 + TOLERANCE["f32"]) * relative_rms(dequantized(codes, scale), wide)
    return measure(run, row, QUANTIZE, arrays, plan, sum(array.nbytes for array in arrays.values()), 0, {})
