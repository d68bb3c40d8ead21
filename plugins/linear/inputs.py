"""Seeded inputs of the plain linears, shared by their tests and their benchmark."""

from __future__ import annotations

import numpy as np

from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear.inputs import Shape


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """x, weight, up_weight; gate and up as a product of these might be."""
    rng = np.random.default_rng(seed)
    rows, pair = (shape.rows, shape.k), (shape.n, shape.k)
    given = {"x": cast(rng.standard_normal(rows), shape.dtype)}
    for name in ("weight", "up_weight"):
        given[name] = cast(rng.standard_normal(pair) / np.sqrt(shape.k), "bf16")
    for name in ("gate", "up"):
        given[name] = cast(3 * rng.standard_normal((shape.rows, shape.n)), shape.dtype)
    return given


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.rows, shape.n), shape.dtype)}
