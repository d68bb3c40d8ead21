"""The section of the normalised, rotated queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.kernels.device import Buffers
from bench.kernels.sections import Run, measure
from bench.kernels.table import Row
from deltart.plugins import qk_norm_rope
from deltart.plugins.launch import Launch
from deltart.plugins.qk_norm_rope import inputs, launch
from deltart.plugins.qk_norm_rope.reference import qk_norm_rope as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SOURCE = Path(str(qk_norm_rope.__file__)).parent / "kernel.cu"


def rope(run: Run) -> Iterator[Row]:
    """One token and a long prompt."""
    for tokens in (1, 9) if run.small else (1, 64, 8192):
        shape = inputs.Shape(tokens=tokens, heads=6 if run.small else 24)
        row, given = Row("rope", f"T={tokens}"), inputs.make(shape, run.seed)
        arrays = given | inputs.outputs(shape)

        def plan(b: Buffers, shape: inputs.Shape = shape) -> list[Launch]:
            return [launch.rope(shape, b.at)]

        buffers = run.device.place(arrays)
        run.device.module(SOURCE)(plan(buffers), 0)
        run.device.synchronize()
        wide = [given[name].astype(np.float64) for name in ("q_gate", "k", "q_weight", "k_weight", "cos", "sin")]
        expected = reference(*wide, shape.heads, shape.kv_heads, shape.head_dim, shape.epsilon)
        found = [buffers.read(name) for name in ("q", "k_out", "gate")]
        row.error = max(relative_rms(mine, right) for mine, right in zip(found, expected, strict=True))
        row.passed = row.error <= TOLERANCE[shape.dtype]
        yield measure(run, row, SOURCE, arrays, plan, sum(a.nbytes for a in arrays.values()), 0, {})


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {"rope": rope}
