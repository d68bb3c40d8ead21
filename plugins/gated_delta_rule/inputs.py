"""Seeded inputs of the gated delta rule, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.gated_delta_rule import reference


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call. dtype is the activations'; the 35B stores A_log in f32 and dt_bias in bf16."""

    slots: int = 1
    tokens: int = 1
    key_heads: int = 16
    value_heads: int = 48
    key_dim: int = 128
    value_dim: int = 128
    dtype: str = "bf16"
    A_log_dtype: str = "bf16"
    dt_bias_dtype: str = "bf16"

    @property
    def width(self) -> int:
        """Channels of qkv."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


def ragged(rng: np.random.Generator, slots: int, tokens: int) -> np.ndarray:
    """n_tokens of each slot: the first full, the second empty, the others anything."""
    n = rng.integers(0, tokens + 1, slots)
    n[0] = tokens
    n[1:2] = 0
    return n.astype(np.int32)


def normal(rng: np.random.Generator, *sizes: int) -> np.ndarray:
    """Standard normal, float32: inputs of long prompts are gigabytes."""
    return rng.standard_normal(sizes, dtype=np.float32)


def keys(rng: np.random.Generator, shape: Shape, correlation: float) -> np.ndarray:
    """k [B, T, Hk, Dk] that share one direction per head; `correlation` is the cosine between any two."""
    own = normal(rng, shape.slots, shape.tokens, shape.key_heads, shape.key_dim)
    common = normal(rng, shape.slots, 1, shape.key_heads, shape.key_dim)
    return np.float32(np.sqrt(correlation)) * common + np.float32(np.sqrt(1 - correlation)) * own


def make(
    shape: Shape,
    seed: int,
    correlation: float = 0.0,
    n_tokens: np.ndarray | None = None,
    n_commit: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """qkv, a, b, A_log, dt_bias, S, n_tokens (T when None) and n_commit (n_tokens when None).

    Tokens at or beyond n_tokens are NaN: they must not matter.
    """
    rng, rows = np.random.default_rng(seed), (shape.slots, shape.tokens)
    q = normal(rng, *rows, shape.key_heads * shape.key_dim)
    k = keys(rng, shape, correlation).reshape(*rows, -1)
    v = normal(rng, *rows, shape.value_heads * shape.value_dim)
    n = np.full(shape.slots, shape.tokens, np.int32) if n_tokens is None else n_tokens.astype(np.int32)
    given = {
        "qkv": np.concatenate([q, k, v], axis=-1),
        "a": normal(rng, *rows, shape.value_heads),
        "b": normal(rng, *rows, shape.value_heads),
    }
    for array in given.values():
        array[np.arange(shape.tokens)[None] >= n[:, None]] = np.nan
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), shape.value_heads))
    return {
        **{name: cast(array, shape.dtype) for name, array in given.items()},
        "A_log": cast(np.log(rng.uniform(1, 16, shape.value_heads)), shape.A_log_dtype),
        "dt_bias": cast(dt + np.log(-np.expm1(-dt)), shape.dt_bias_dtype),
        "S": np.float32(0.3) * normal(rng, shape.slots, shape.value_heads, shape.key_dim, shape.value_dim),
        "n_tokens": n,
        "n_commit": n if n_commit is None else n_commit.astype(np.int32),
    }


def gating(shape: Shape, seed: int, weight_dtype: str = "bf16") -> dict[str, np.ndarray]:
    """What the norm behind a call takes: its weight, and z [B, T, Hv * Dv]."""
    rng = np.random.default_rng(seed)
    z = 3 * normal(rng, shape.slots, shape.tokens, shape.value_heads * shape.value_dim)
    return {"norm_weight": cast(rng.uniform(0.2, 2, shape.value_dim), weight_dtype), "z": cast(z, shape.dtype)}


def expected(shape: Shape, given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The reference's o [B, T, Hv * Dv] and new state for what `make` returned."""
    arrays = {name: array if array.dtype == np.int32 else array.astype(np.float64) for name, array in given.items()}
    return reference.gated_delta_rule(
        **arrays,
        num_k_heads=shape.key_heads,
        num_v_heads=shape.value_heads,
        head_k_dim=shape.key_dim,
        head_v_dim=shape.value_dim,
    )


def tokens(shape: Shape, given: dict[str, np.ndarray]) -> reference.Tokens:
    """The reference's operands for what `make` returned."""
    arrays = {name: given[name].astype(np.float64) for name in ("qkv", "a", "b", "A_log", "dt_bias")}
    return reference.tokens(**arrays, n_tokens=given["n_tokens"], num_k_heads=shape.key_heads, head_k_dim=shape.key_dim)


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """o [B, T, Hv * Dv], full of NaN."""
    return {"o": poisoned((shape.slots, shape.tokens, shape.value_heads * shape.value_dim), shape.dtype)}
