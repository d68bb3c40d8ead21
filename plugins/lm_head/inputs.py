"""Seeded inputs of the LM head, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.dtypes import BF16
from deltart.plugins.dtypes import cast
from deltart.plugins.fp8_linear import inputs as fp8
from deltart.plugins.lm_head.reference import GROUP


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call: x [rows, k], weight [vocabulary, k] as "bf16" or "e4m3" with scales.

    limit: ids from here on are padding. keep: how many best tokens. subset: how many of the weight's rows are used.
    """

    rows: int = 1
    vocabulary: int = 248320
    k: int = 5120
    limit: int = 248077
    keep: int = 1
    subset: int = 0
    dtype: str = "bf16"
    weight_dtype: str = "bf16"

    @property
    def scored(self) -> int:
        """Logits per row of x."""
        return self.subset or self.vocabulary


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """x, weight, weight_scale for E4M3, and ids (in no order) for a subset."""
    rng = np.random.default_rng(seed)
    given = {"x": cast(rng.standard_normal((shape.rows, shape.k)), shape.dtype)}
    if shape.weight_dtype == "bf16":
        given["weight"] = _weight(rng, shape)
    else:
        given["weight"] = fp8.weight(rng, shape.vocabulary, shape.k)
        given["weight_scale"] = cast(rng.uniform(1e-4, 1e-3, (shape.vocabulary, -(-shape.k // GROUP))), "bf16")
    if shape.subset:
        given["ids"] = rng.permutation(shape.vocabulary)[: shape.subset].astype(np.int32)
    return given


DRAWN_ROWS = 8192  # of the weight, before they come again: a billion normals take a minute


def _weight(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """[vocabulary, k] of spread 0.02; every row has a size of its own, so that none has the logits of another."""
    rows = 0.02 * rng.standard_normal((min(shape.vocabulary, DRAWN_ROWS), shape.k), np.float32)
    sizes = rng.uniform(0.5, 1.5, (shape.vocabulary, 1)).astype(np.float32)
    weight = np.empty((shape.vocabulary, shape.k), BF16.numpy)
    for first in range(0, shape.vocabulary, len(rows)):
        mine = sizes[first : first + len(rows)]
        weight[first : first + len(rows)] = cast(rows[: len(mine)] * mine, "bf16")
    return weight


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """logits full of NaN, best_logits and best_ids."""
    return {
        "logits": np.full((shape.rows, shape.scored), np.nan, np.float32),
        "best_logits": np.full((shape.rows, shape.keep), np.nan, np.float32),
        "best_ids": np.full((shape.rows, shape.keep), -1, np.int32),
    }
