"""Float64 reference of the gated delta rule: the token recurrence, nothing chunked."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deltart.plugins.gated_rms_norm.reference import gated_rms_norm

EPSILON = 1e-6


@dataclass(frozen=True)
class Tokens:
    """The operands of the recurrence, float64, key heads repeated for their value heads.

    q, k [B, T, Hv, Dk] (L2-normalised, q scaled by Dk^-0.5), v [B, T, Hv, Dv], g and beta [B, T, Hv] (0 where masked).
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    g: np.ndarray
    beta: np.ndarray

    def first(self, n: np.ndarray) -> Tokens:
        """The same tokens with those at or beyond n [B] masked: they leave S unchanged."""
        live = np.arange(self.g.shape[1])[None, :, None] < n[:, None, None]
        return replace(self, g=np.where(live, self.g, 0.0), beta=np.where(live, self.beta, 0.0))


def gates(a: np.ndarray, b: np.ndarray, A_log: np.ndarray, dt_bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(g, beta) [B, T, Hv]: log decay -exp(A_log) * softplus(a + dt_bias) and update rate sigmoid(b)."""
    return -np.exp(A_log) * np.logaddexp(0.0, a + dt_bias), 1.0 / (1.0 + np.exp(-b))


def l2norm(x: np.ndarray) -> np.ndarray:
    """x / sqrt(sum x^2 + 1e-6) over the last axis."""
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + EPSILON)


def tokens(
    qkv: np.ndarray, a: np.ndarray, b: np.ndarray, A_log: np.ndarray, dt_bias: np.ndarray, n_tokens: np.ndarray,
    num_k_heads: int, head_k_dim: int,
) -> Tokens:  # fmt: skip
    """Unpacks qkv, a and b. What they hold at or beyond n_tokens does not matter, NaN included."""
    batch, length, num_v_heads = a.shape
    real = np.arange(length)[None, :, None] < n_tokens[:, None, None]  # [B, T, 1]
    qkv, a, b = (np.where(real, x, 0.0) for x in (qkv, a, b))
    q, k, v = np.split(qkv, [num_k_heads * head_k_dim, 2 * num_k_heads * head_k_dim], axis=-1)
    group = num_v_heads // num_k_heads
    q, k = (np.repeat(l2norm(x.reshape(batch, length, num_k_heads, head_k_dim)), group, axis=2) for x in (q, k))
    every = Tokens(q * head_k_dim**-0.5, k, v.reshape(batch, length, num_v_heads, -1), *gates(a, b, A_log, dt_bias))
    return every.first(n_tokens)


def recur(x: Tokens, S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S [B, Hv, Dk, Dv] -> o [B, T, Hv, Dv] and the state after the last token."""
    S, o = S.astype(np.float64), np.empty_like(x.v)
    for t in range(x.g.shape[1]):
        S *= np.exp(x.g[:, t])[..., None, None]
        d = (x.v[:, t] - np.einsum("bhk,bhkv->bhv", x.k[:, t], S)) * x.beta[:, t][..., None]
        S += x.k[:, t][..., None] * d[..., None, :]
        o[:, t] = np.einsum("bhk,bhkv->bhv", x.q[:, t], S)
    return o, S


def gated_delta_rule(
    qkv: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    A_log: np.ndarray,
    dt_bias: np.ndarray,
    S: np.ndarray,
    n_tokens: np.ndarray,
    n_commit: np.ndarray,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
) -> tuple[np.ndarray, np.ndarray]:
    """qkv [B, T, 2*Hk*Dk + Hv*Dv], a and b [B, T, Hv], S [B, Hv, Dk, Dv] -> o [B, T, Hv*Dv], S'.

    S *= exp(g); d = (v - k^T S) * beta; S += k (x) d; o = q^T S, with q, k L2-normalised and q scaled by Dk^-0.5.
    Tokens t >= n_tokens[b] have g = 0 and beta = 0: they change nothing. S' is the state after n_commit[b] <=
    n_tokens[b] tokens; the tokens after those are drafts, which have outputs and leave no trace.
    """
    fed = tokens(qkv, a, b, A_log, dt_bias, n_tokens, num_k_heads, head_k_dim)
    o, last = recur(fed, S)
    S = last if (n_commit == n_tokens).all() else recur(fed.first(n_commit), S)[1]
    return o.reshape(*a.shape[:2], num_v_heads * head_v_dim), S


def gated_delta_norm(
    qkv: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    A_log: np.ndarray,
    dt_bias: np.ndarray,
    S: np.ndarray,
    n_tokens: np.ndarray,
    n_commit: np.ndarray,
    norm_weight: np.ndarray,
    z: np.ndarray,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """As gated_delta_rule, then gated_rms_norm of o by z [B, T, Hv*Dv]: y [B, T, Hv*Dv], S'. y of tokens at or beyond
    n_tokens is zero."""
    heads = (num_k_heads, num_v_heads, head_k_dim, head_v_dim)
    o, S = gated_delta_rule(qkv, a, b, A_log, dt_bias, S, n_tokens, n_commit, *heads)
    real = np.arange(o.shape[1])[None, :, None] < n_tokens[:, None, None]
    return gated_rms_norm(o, norm_weight, np.where(real, z, 0.0), epsilon)[0], S
