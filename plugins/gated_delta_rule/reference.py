"""Gated delta rule, one token after another, in float64. The kernels are chunked or fused; this is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-6


@dataclass(frozen=True)
class Tokens:
    """The operands of the recurrence, float64. Hv heads each; T tokens.

    q, k [B, T, Hv, Dk] (normalised, q scaled), v [B, T, Hv, Dv], g and beta [B, T, Hv] (0 where masked).
    """

    q: NDArray
    k: NDArray
    v: NDArray
    g: NDArray
    beta: NDArray


def normalise(x: NDArray) -> NDArray:
    """l2norm of the last axis with the epsilon inside the root."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + EPSILON)


def tokens(inputs: dict[str, NDArray], key_heads: int, key_dim: int) -> Tokens:
    """Unpacks qkv, a and b (any float type) into what the recurrence multiplies."""
    qkv, a, b, A_log, dt_bias = (inputs[n].astype(np.float64) for n in ("qkv", "a", "b", "A_log", "dt_bias"))
    batch, count, _ = qkv.shape
    value_heads = a.shape[-1]
    live = (np.arange(count)[None] < inputs["n_tokens"][:, None])[..., None]  # [B, T, 1]
    qkv, a, b = (np.where(live, x, 0.0) for x in (qkv, a, b))
    q, k, v = np.split(qkv, [key_heads * key_dim, 2 * key_heads * key_dim], axis=-1)
    q, k = (x.reshape(batch, count, key_heads, key_dim) for x in (q, k))
    q, k = (np.repeat(normalise(x), value_heads // key_heads, axis=2) for x in (q, k))
    softplus = np.logaddexp(0.0, a + dt_bias)
    return Tokens(
        q=q * key_dim**-0.5,
        k=k,
        v=v.reshape(batch, count, value_heads, -1),
        g=np.where(live, -np.exp(A_log) * softplus, 0.0),
        beta=np.where(live, 1 / (1 + np.exp(-b)), 0.0),
    )


def recur(x: Tokens, S: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """o [B, T, Hv, Dv], u [B, T, Hv, Dv] and the state after the last token [B, Hv, Dk, Dv].

    S *= exp(g);  u = (v - k^T S) beta;  S += k u^T;  o = q^T S
    """
    S = S.astype(np.float64)
    outputs, updates = [], []
    for t in range(x.g.shape[1]):
        S = S * np.exp(x.g[:, t])[..., None, None]
        u = (x.v[:, t] - np.einsum("bhk,bhkv->bhv", x.k[:, t], S)) * x.beta[:, t, :, None]
        S = S + x.k[:, t, :, :, None] * u[:, :, None, :]
        outputs.append(np.einsum("bhk,bhkv->bhv", x.q[:, t], S))
        updates.append(u)
    return np.stack(outputs, 1), np.stack(updates, 1), S


def from_inputs(inputs: dict[str, NDArray], key_heads: int, key_dim: int) -> tuple[NDArray, NDArray]:
    """o [B, T, Hv, Dv] and the new state, both float64. Rows of o at or beyond n_tokens mean nothing."""
    o, _, S = recur(tokens(inputs, key_heads, key_dim), inputs["S"])
    return o, S


def gated_delta_rule(
    *arrays: NDArray, num_k_heads: int, num_v_heads: int, head_k_dim: int, head_v_dim: int
) -> tuple[NDArray, NDArray]:
    """The contract's reference: `arrays` in its order; o [B, T, Hv * Dv] and S [B, Hv, Dk, Dv]."""
    names = ("qkv", "a", "b", "A_log", "dt_bias", "S", "n_tokens")
    o, S = from_inputs(dict(zip(names, arrays, strict=True)), num_k_heads, head_k_dim)
    return o.reshape(*o.shape[:2], num_v_heads * head_v_dim), S


def accept(x: Tokens, n: NDArray) -> Tokens:
    """The same tokens with everything at or beyond n [B] turned into no-ops."""
    live = (np.arange(x.g.shape[1])[None] < n[:, None])[..., None]
    return Tokens(x.q, x.k, x.v, np.where(live, x.g, 0.0), np.where(live, x.beta, 0.0))
