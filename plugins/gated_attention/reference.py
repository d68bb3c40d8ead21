"""Float64 reference of gated grouped-query attention over a KV cache."""

from __future__ import annotations

import numpy as np

from deltart.plugins.qk_norm_rope.reference import qk_norm_rope


def gated_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    gate: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    past_len: np.ndarray,
    n_tokens: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, gate [B, T, Hq*D], k, v [B, T, Hkv*D], caches [B, Hkv, capacity, D] -> o [B, T, Hq*D] and the new caches.

    Token t of row b sees cache rows 0 .. past_len[b] + t. Outputs of tokens t >= n_tokens[b] are zero.
    """
    k_cache, v_cache = k_cache.copy(), v_cache.copy()
    o = np.zeros_like(q)
    group = num_heads // num_kv_heads
    for row, (past, count) in enumerate(zip(past_len.tolist(), n_tokens.tolist(), strict=True)):
        for cache, new in ((k_cache, k), (v_cache, v)):
            cache[row, :, past : past + count] = _heads(new[row, :count], num_kv_heads).transpose(1, 0, 2)
        for t in range(count):
            keys, values = (np.repeat(c[row, :, : past + t + 1], group, axis=0) for c in (k_cache, v_cache))
            scores = np.einsum("hd,hcd->hc", _heads(q[row, t], num_heads), keys) * head_dim**-0.5
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            o[row, t] = np.einsum("hc,hcd->hd", weights, values).reshape(-1)
    return o / (1.0 + np.exp(-gate)), k_cache, v_cache


def rope_gated_attention(
    q_gate: np.ndarray,
    k: np.ndarray,
    q_weight: np.ndarray,
    k_weight: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    v: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    past_len: np.ndarray,
    n_tokens: np.ndarray,
    arrived: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As qk_norm_rope, then gated_attention, whose v, caches and counts these are. `arrived` is the kernel's own."""
    heads = (num_heads, num_kv_heads, head_dim)
    q, turned, gate = qk_norm_rope(q_gate, k, q_weight, k_weight, cos, sin, *heads, epsilon)
    return gated_attention(q, turned, v, gate, k_cache, v_cache, past_len, n_tokens, *heads)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
