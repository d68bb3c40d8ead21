"""Seeded inputs of the residual RMS norm, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.dtypes import cast, poisoned


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call: x, h [rows, width]. parameter_dtype is the weight's."""

    rows: int = 1
    width: int = 5120
    dtype: str = "bf16"
    parameter_dtype: str = "bf16"
    epsilon: float = 1e-6


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """x, h (rows of very different size) and weight."""
    rng = np.random.default_rng(seed)
    size = (shape.rows, shape.width)
    by = np.exp2(rng.uniform(-9, 6, (shape.rows, 1)))
    return {
        "x": cast(by * rng.standard_normal(size), shape.dtype),
        "h": cast(by * rng.standard_normal(size), shape.dtype),
        "weight": cast(rng.uniform(-0.8, 1, shape.width), shape.parameter_dtype),
    }


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.rows, shape.width), shape.dtype)}
