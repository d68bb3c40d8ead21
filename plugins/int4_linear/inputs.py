"""Seeded inputs of the int4 linear, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.dtypes import cast, poisoned


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call: x [slots, tokens, k], weight [n, k] in groups of `group` along K."""

    slots: int = 1
    tokens: int = 1
    n: int = 5120
    k: int = 5120
    group: int = 128
    dtype: str = "bf16"
    scale_dtype: str = "bf16"

    @property
    def rows(self) -> int:
        """M: the tokens of all slots."""
        return self.slots * self.tokens

    @property
    def groups(self) -> int:
        """Of a row of the weight."""
        return self.k // self.group


def weight(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """weight_groups, every value as often as another, and weight_scale over four powers of two."""
    rng = np.random.default_rng(seed)
    groups = (shape.n, shape.groups)
    return {
        "weight_groups": rng.integers(0, 256, (*groups, shape.group // 2), np.uint8),
        "weight_scale": cast(np.exp2(rng.uniform(-9, -5, groups)), shape.scale_dtype),
    }


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """x, weight_groups and weight_scale."""
    x = np.random.default_rng([seed, 1]).standard_normal((shape.slots, shape.tokens, shape.k))
    return {"x": cast(x, shape.dtype)} | weight(shape, seed)


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.slots, shape.tokens, shape.n), shape.dtype)}
