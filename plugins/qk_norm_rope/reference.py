"""Float64 reference of the normalised, rotated queries and keys."""

from __future__ import annotations

import numpy as np


def qk_norm_rope(
    q_gate: np.ndarray,
    k: np.ndarray,
    q_weight: np.ndarray,
    k_weight: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q_gate [B, T, heads 2 D], k [B, T, kv_heads D], weights [D], cos, sin [B, T, P] -> q, k, gate [B, T, heads D]."""
    rows = q_gate.shape[:2]
    both = q_gate.reshape(*rows, num_heads, 2, head_dim)
    q = rotate(normed(both[..., 0, :], q_weight, epsilon), cos, sin)
    k = rotate(normed(k.reshape(*rows, num_kv_heads, head_dim), k_weight, epsilon), cos, sin)
    return q.reshape(*rows, -1), k.reshape(*rows, -1), both[..., 1, :].reshape(*rows, -1)


def normed(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """x / rms(x) * (1 + weight) over the last axis."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * (1 + weight)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [B, T, H, D] with dimension i < P turned against i + P; the dimensions from 2 P on pass."""
    pairs = cos.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
