"""Float64 reference of the gated delta rule: the token recurrence, nothing chunked."""

from __future__ import annotations

import numpy as np

L2_EPSILON = 1e-6


def gates(a: np.ndarray, b: np.ndarray, A_log: np.ndarray, dt_bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(g, beta) [B, T, Hv]: log decay -exp(A_log) * softplus(a + dt_bias) and update rate sigmoid(b)."""
    return -np.exp(A_log) * np.logaddexp(0.0, a + dt_bias), 1.0 / (1.0 + np.exp(-b))


def l2norm(x: np.ndarray) -> np.ndarray:
    """x / sqrt(sum x^2 + 1e-6) over the last axis."""
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + L2_EPSILON)


def gated_delta_rule(
    qkv: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    A_log: np.ndarray,
    dt_bias: np.ndarray,
    S: np.ndarray,
    n_tokens: np.ndarray,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
) -> tuple[np.ndarray, np.ndarray]:
    """qkv [B, T, 2*Hk*Dk + Hv*Dv], a and b [B, T, Hv], S [B, Hv, Dk, Dv] -> o [B, T, Hv*Dv], S'.

    S *= exp(g); d = (v - k^T S) * beta; S += k (x) d; o = q^T S, with q, k L2-normalised and q scaled by Dk^-0.5.
    Tokens t >= n_tokens[b] have g = 0 and beta = 0: they leave S unchanged.
    """
    batch, length = qkv.shape[:2]
    q, k, v = np.split(qkv, [num_k_heads * head_k_dim, 2 * num_k_heads * head_k_dim], axis=-1)
    group = num_v_heads // num_k_heads
    q, k = (np.repeat(l2norm(x.reshape(batch, length, num_k_heads, head_k_dim)), group, axis=2) for x in (q, k))
    v = v.reshape(batch, length, num_v_heads, head_v_dim)
    real = np.arange(length)[None, :, None] < n_tokens[:, None, None]  # [B, T, 1]
    g, beta = (np.where(real, x, 0.0) for x in gates(a, b, A_log, dt_bias))

    S, o = S.copy(), np.empty_like(v)
    for t in range(length):
        S *= np.exp(g[:, t])[..., None, None]
        d = (v[:, t] - np.einsum("bhk,bhkv->bhv", k[:, t], S)) * beta[:, t][..., None]
        S += k[:, t][..., None] * d[..., None, :]
        o[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], S) * head_k_dim**-0.5
    return o.reshape(batch, length, -1), S
