"""Float64 reference of the attention layer's projections."""

from __future__ import annotations

import numpy as np

from deltart.plugins.fp8_block_linear.reference import fp8_block_linear


def attention_projections(
    x: np.ndarray,
    q_weight: np.ndarray,
    q_scale_inv: np.ndarray,
    k_weight: np.ndarray,
    k_scale_inv: np.ndarray,
    v_weight: np.ndarray,
    v_scale_inv: np.ndarray,
    quantize_activations: int,
) -> tuple[np.ndarray, ...]:
    """x [B, T, K], weights [N, K], scales [ceil(N/128), ceil(K/128)] -> q, k, v [B, T, N]."""
    (q,) = fp8_block_linear(x, q_weight, q_scale_inv, quantize_activations)
    (k,) = fp8_block_linear(x, k_weight, k_scale_inv, quantize_activations)
    (v,) = fp8_block_linear(x, v_weight, v_scale_inv, quantize_activations)
    return q, k, v
