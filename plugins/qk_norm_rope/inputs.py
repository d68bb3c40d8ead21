"""Seeded inputs of the normalised, rotated queries and keys, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.dtypes import cast, poisoned


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call; rotary_dim is 2 P, parameter_dtype that of the norms' weights."""

    slots: int = 1
    tokens: int = 1
    heads: int = 24
    kv_heads: int = 4
    head_dim: int = 256
    rotary_dim: int = 64
    dtype: str = "bf16"
    parameter_dtype: str = "bf16"
    epsilon: float = 1e-6

    @property
    def rows(self) -> int:
        """The tokens of all slots."""
        return self.slots * self.tokens


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """q_gate, k (heads of very different size), both weights, and cos and sin of random angles."""
    rng = np.random.default_rng(seed)
    rows = (shape.slots, shape.tokens)

    def heads(count: int, width: int) -> np.ndarray:
        sizes = np.exp2(rng.uniform(-12, 6, (*rows, count, 1)))
        values: np.ndarray = (rng.standard_normal((*rows, count, width)) * sizes).reshape(*rows, count * width)
        return values

    angles = rng.uniform(-np.pi, np.pi, (*rows, shape.rotary_dim // 2))
    given = {"q_gate": heads(shape.heads, 2 * shape.head_dim), "k": heads(shape.kv_heads, shape.head_dim)}
    given |= {"cos": 1.1 * np.cos(angles), "sin": 1.1 * np.sin(angles)}  # as YaRN scales them
    weights = {name: rng.uniform(-0.5, 1, shape.head_dim) for name in ("q_weight", "k_weight")}
    return {name: cast(x, shape.dtype) for name, x in given.items()} | {
        name: cast(x, shape.parameter_dtype) for name, x in weights.items()
    }


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """q, k_out and gate, full of NaN."""
    heads = {"q": shape.heads, "k_out": shape.kv_heads, "gate": shape.heads}
    return {n: poisoned((shape.slots, shape.tokens, h * shape.head_dim), shape.dtype) for n, h in heads.items()}
