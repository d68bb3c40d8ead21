"""Float64 reference of the block-128 FP8 linear."""

from __future__ import annotations

import numpy as np

BLOCK = 128


def dequantize(weight: np.ndarray, weight_scale_inv: np.ndarray) -> np.ndarray:
    """E4M3 values [N, K] times their block scales [ceil(N/128), ceil(K/128)]; edge blocks may be partial."""
    rows, columns = (np.arange(size) // BLOCK for size in weight.shape)
    return weight * weight_scale_inv[rows][:, columns]


def fp8_block_linear(x: np.ndarray, weight: np.ndarray, weight_scale_inv: np.ndarray) -> tuple[np.ndarray]:
    """x [B, T, K], weight [N, K] (E4M3 values), weight_scale_inv [ceil(N/128), ceil(K/128)] -> y [B, T, N]."""
    return (x @ dequantize(weight, weight_scale_inv).T,)
