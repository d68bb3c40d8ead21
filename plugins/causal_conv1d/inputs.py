"""Seeded inputs of the causal conv1d, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.causal_conv1d.reference import causal_conv1d
from deltart.plugins.dtypes import cast, poisoned


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call. parameter_dtype is the storage type of the weight."""

    slots: int = 1
    tokens: int = 1
    channels: int = 10240
    dtype: str = "bf16"
    parameter_dtype: str = "bf16"


def make(shape: Shape, seed: int, n_commit: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """x, weight, state and n_commit (T when None)."""
    rng = np.random.default_rng(seed)
    n = np.full(shape.slots, shape.tokens, np.int32) if n_commit is None else n_commit.astype(np.int32)
    x = rng.standard_normal((shape.slots, shape.tokens, shape.channels), dtype=np.float32)
    return {
        "x": cast(x, shape.dtype),
        "weight": cast(0.5 * rng.standard_normal((shape.channels, 1, 4)), shape.parameter_dtype),
        "state": cast(rng.standard_normal((shape.slots, 3, shape.channels)), shape.dtype),
        "n_commit": n,
    }


def expected(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The reference's y and new state for what `make` returned."""
    x, weight, state = (given[name].astype(np.float64) for name in ("x", "weight", "state"))
    return causal_conv1d(x, weight, state, given["n_commit"])


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.slots, shape.tokens, shape.channels), shape.dtype)}
