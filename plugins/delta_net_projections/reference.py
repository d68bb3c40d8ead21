"""Float64 reference of the Gated DeltaNet layer's projections."""

from __future__ import annotations

import numpy as np

from deltart.plugins.fp8_block_linear.reference import fp8_block_linear


def delta_net_projections(
    x: np.ndarray,
    qkv_weight: np.ndarray,
    qkv_scale_inv: np.ndarray,
    z_weight: np.ndarray,
    z_scale_inv: np.ndarray,
    a_weight: np.ndarray,
    b_weight: np.ndarray,
    quantize_activations: int,
) -> tuple[np.ndarray, ...]:
    """x [B, T, K], weights [N, K], scales [ceil(N/128), ceil(K/128)] -> qkv, z, a, b [B, T, N]."""
    (qkv,) = fp8_block_linear(x, qkv_weight, qkv_scale_inv, quantize_activations)
    (z,) = fp8_block_linear(x, z_weight, z_scale_inv, quantize_activations)
    return qkv, z, x @ a_weight.T, x @ b_weight.T
