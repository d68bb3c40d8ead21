"""The section of the projections that share one launch: what a token's attention and DeltaNet layers begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.kernels.device import Buffers
from bench.kernels.run import Run, measure
from bench.kernels.table import Row
from deltart.plugins import fp8_linear
from deltart.plugins.cases import Arrays
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear import inputs
from deltart.plugins.fp8_linear.projections import Projection, decode
from deltart.plugins.fp8_linear.reference import BLOCK
from deltart.plugins.launch import Launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SOURCE = Path(str(fp8_linear.__file__)).parent / "projections.cu"
HIDDEN = 5120
# Rows of the block-FP8 weights and of the bf16 ones of a 27B layer.
LAYERS = {"attention": ((12288, 1024, 1024), ()), "delta_net": ((10240, 6144), (48, 48))}
SMALL = {"attention": ((272, 64, 64), ()), "delta_net": ((272, 130), (6, 6))}
SAMPLED_ROWS = 256  # of each weight, compared with float64


def make(
    shape: inputs.Shape, fp8: tuple[int, ...], plain: tuple[int, ...], seed: int
) -> tuple[Arrays, list[Projection]]:
    """x, the weights and their results full of NaN, and how they go together."""
    arrays, members = {"x": inputs.make(shape, seed)["x"]}, []
    for index, n in enumerate((*fp8, *plain)):
        scale = f"s{index}" if index < len(fp8) else None
        if scale:
            one = inputs.make(inputs.Shape(n=n, k=shape.k), seed + index)
            arrays |= {f"w{index}": one["weight"], scale: one["weight_scale_inv"]}
        else:
            arrays[f"w{index}"] = cast(np.random.default_rng(seed + index).standard_normal((n, shape.k)), "bf16")
        arrays[f"y{index}"] = poisoned((1, shape.tokens, n), "bf16")
        members.append(Projection(n, f"w{index}", f"y{index}", scale))
    return arrays, members


def error(arrays: Arrays, member: Projection, y: np.ndarray, rows: np.ndarray) -> float:
    """Relative RMS of some rows of one result."""
    x, weight = arrays["x"].astype(np.float64), arrays[member.weight][rows].astype(np.float64)
    if member.scale:
        scale = arrays[member.scale].astype(np.float64)[rows // BLOCK]
        weight = weight * np.repeat(scale, BLOCK, 1)[:, : x.shape[-1]]
    return relative_rms(y[..., rows], x @ weight.T)


def projections(run: Run) -> Iterator[Row]:
    """One token and eight."""
    for name, (fp8, plain) in (SMALL if run.small else LAYERS).items():
        for tokens in (1, 8):
            shape = inputs.Shape(tokens=tokens, k=400 if run.small else HIDDEN)
            arrays, members = make(shape, fp8, plain, run.seed)
            row = Row("projections", f"{name} M={tokens}")

            def plan(b: Buffers, shape: inputs.Shape = shape, members: list[Projection] = members) -> list[Launch]:
                return [decode(shape, members, b.at)]

            buffers = run.device.place(arrays)
            run.device.module(SOURCE)(plan(buffers), 0)
            run.device.synchronize()
            rng = np.random.default_rng(run.seed)
            row.error = max(
                error(arrays, m, buffers.read(m.y), rng.choice(m.n, min(m.n, SAMPLED_ROWS), replace=False))
                for m in members
            )
            row.passed = row.error <= TOLERANCE["bf16"]
            yield measure(run, row, SOURCE, arrays, plan, sum(a.nbytes for a in arrays.values()), 0, {})
