"""Float64 reference of the block-128 FP8 linear."""

from __future__ import annotations

import ml_dtypes
import numpy as np

BLOCK = 128


def dequantize(weight: np.ndarray, weight_scale_inv: np.ndarray) -> np.ndarray:
    """E4M3 values [N, K] times their block scales [ceil(N/128), ceil(K/128)]; edge blocks may be partial."""
    rows, columns = (np.arange(size) // BLOCK for size in weight.shape)
    return weight * weight_scale_inv[rows][:, columns]


def fp8_block_linear(
    x: np.ndarray, weight: np.ndarray, weight_scale_inv: np.ndarray, quantize_activations: int = 0
) -> tuple[np.ndarray]:
    """x [B, T, K], weight [N, K] (E4M3 values), weight_scale_inv [ceil(N/128), ceil(K/128)] -> y [B, T, N].

    `quantize_activations`: 1 rounds x to E4M3 first, in f32 arithmetic.
    """
    if quantize_activations:
        codes, scale = quantize(x.reshape(-1, x.shape[-1]).astype(np.float32))
        x = scaled(codes, scale).reshape(x.shape)
    return (x @ dequantize(weight, weight_scale_inv).T,)


def scaled(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Float64 values of codes [M, K] with scales [M, ceil(K/128)]."""
    return codes.astype(np.float64) * np.repeat(scale.astype(np.float64), BLOCK, 1)[:, : codes.shape[1]]


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [M, K] (f32) as E4M3 codes [M, K] and f32 scales amax / 448 [M, ceil(K/128)]; 1 where a group is all zero."""
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK))).reshape(x.shape[0], -1, BLOCK)
    most = np.abs(groups).max(-1)
    scale = np.where(most > 0, most / np.float32(448), np.float32(1)).astype(np.float32)
    codes = (groups / scale[..., None]).astype(ml_dtypes.float8_e4m3fn)
    return codes.reshape(x.shape[0], -1)[:, : x.shape[1]], scale
