"""Seeded inputs of the gated RMS norm, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.dtypes import cast, poisoned


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call: x, z [slots, tokens, heads * head_dim]. parameter_dtype is the weight's."""

    slots: int = 1
    tokens: int = 1
    heads: int = 48
    head_dim: int = 128
    dtype: str = "bf16"
    parameter_dtype: str = "bf16"
    epsilon: float = 1e-6


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """x (heads of very different size, one of them near zero), weight and z."""
    rng = np.random.default_rng(seed)
    rows = (shape.slots, shape.tokens, shape.heads)
    x = rng.standard_normal((*rows, shape.head_dim)) * np.exp2(rng.uniform(-12, 6, (*rows, 1)))
    flat = (*rows[:2], shape.heads * shape.head_dim)
    return {
        "x": cast(x.reshape(flat), shape.dtype),
        "weight": cast(rng.uniform(0.2, 2, shape.head_dim), shape.parameter_dtype),
        "z": cast(3 * rng.standard_normal(flat), shape.dtype),
    }


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.slots, shape.tokens, shape.heads * shape.head_dim), shape.dtype)}
