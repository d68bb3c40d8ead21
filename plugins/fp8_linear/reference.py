"""Float64 references of the block-128 FP8 linears: alone, gated in pairs, and several of one x."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from deltart.plugins.residual_rms_norm.reference import residual_rms_norm

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
    amax = np.abs(groups).max(-1)
    scale = np.where(amax > 0, amax / np.float32(448), np.float32(1)).astype(np.float32)
    codes = (groups / scale[..., None]).astype(ml_dtypes.float8_e4m3fn)
    return codes.reshape(x.shape[0], -1)[:, : x.shape[1]], scale


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


def fp8_linear_norm(
    x: np.ndarray,
    weight: np.ndarray,
    weight_scale_inv: np.ndarray,
    h: np.ndarray,
    norm_weight: np.ndarray,
    arrived: np.ndarray,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """As fp8_block_linear with exact x, then residual_rms_norm of its result over h [B, T, N]; `arrived` is 0."""
    return residual_rms_norm(*fp8_block_linear(x, weight, weight_scale_inv), h, norm_weight, epsilon)


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
