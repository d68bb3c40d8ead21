"""Float64 reference of the gated pair of block-128 FP8 linears."""

from __future__ import annotations

import numpy as np

from deltart.plugins.fp8_block_linear.reference import fp8_block_linear


def fp8_block_gate_up(
    x: np.ndarray,
    weight: np.ndarray,
    weight_scale_inv: np.ndarray,
    up_weight: np.ndarray,
    up_weight_scale_inv: np.ndarray,
    quantize_activations: int,
) -> tuple[np.ndarray]:
    """x [B, T, K], weights [N, K] (E4M3 values) with their block scales -> silu(x W^T) * (x U^T) [B, T, N]."""
    (gate,) = fp8_block_linear(x, weight, weight_scale_inv, quantize_activations)
    (up,) = fp8_block_linear(x, up_weight, up_weight_scale_inv, quantize_activations)
    return (gate / (1.0 + np.exp(-gate)) * up,)
