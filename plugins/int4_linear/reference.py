"""Float64 reference of the linear whose weight is four bits a value, symmetric, with one scale per group of a row."""

from __future__ import annotations

import numpy as np

from deltart.plugins.residual_rms_norm.reference import residual_rms_norm

ZERO = 8  # what stands for 0: a nibble is the value plus this


def values(weight_groups: np.ndarray) -> np.ndarray:
    """Integers -8 to 7, [N, K], of bytes [N, groups, group / 2]: two values a byte, the earlier one in its low half."""
    nibbles = np.stack([weight_groups & 15, weight_groups >> 4], axis=-1)
    return nibbles.reshape(len(weight_groups), -1).astype(np.int8) - ZERO


def packed(weights: np.ndarray, group_size: int) -> np.ndarray:
    """The inverse of `values`: bytes [N, K / group_size, group_size / 2] of integers -8 to 7 [N, K]."""
    nibbles = (weights + ZERO).astype(np.uint8).reshape(len(weights), -1, group_size // 2, 2)
    return np.ascontiguousarray(nibbles[..., 0] | nibbles[..., 1] << 4)


def dequantize(weight_groups: np.ndarray, weight_scale: np.ndarray) -> np.ndarray:
    """The weight [N, K] in the type of `weight_scale` [N, groups]."""
    integers = values(weight_groups).reshape(*weight_scale.shape, -1)
    return (integers * weight_scale[..., None]).reshape(len(weight_scale), -1)


def int4_group_linear(
    x: np.ndarray, weight_groups: np.ndarray, weight_scale: np.ndarray, K: int, N: int, group_size: int
) -> tuple[np.ndarray]:
    """x [B, T, K], bytes [N, K / group_size, group_size / 2], weight_scale [N, K / group_size] -> y [B, T, N].

    Raises:
        ValueError: the sizes don't fit the attributes.
    """
    if weight_groups.shape != (N, K // group_size, group_size // 2) or K % group_size:
        raise ValueError(f"groups {weight_groups.shape} of {group_size}, expected those of a weight [{N}, {K}]")
    return (x @ dequantize(weight_groups, weight_scale).T,)


def _product(x: np.ndarray, groups: np.ndarray, scale: np.ndarray, group_size: int) -> np.ndarray:
    return int4_group_linear(x, groups, scale, x.shape[-1], len(groups), group_size)[0]


def int4_group_gate_up(
    x: np.ndarray, weight_groups: np.ndarray, weight_scale: np.ndarray, up_groups: np.ndarray, up_scale: np.ndarray,
    group_size: int,
) -> tuple[np.ndarray]:  # fmt: skip
    """x [B, T, K], weights as in int4_group_linear -> silu(x W^T) * (x U^T) [B, T, N]."""
    gate, up = _product(x, weight_groups, weight_scale, group_size), _product(x, up_groups, up_scale, group_size)
    return (gate / (1.0 + np.exp(-gate)) * up,)


def int4_linear_norm(
    x: np.ndarray, weight_groups: np.ndarray, weight_scale: np.ndarray, h: np.ndarray, norm_weight: np.ndarray,
    arrived: np.ndarray, group_size: int, epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """x [B, T, K], weight as in int4_group_linear, then residual_rms_norm of its result over h [B, T, N]; `arrived` is
    0."""
    return residual_rms_norm(_product(x, weight_groups, weight_scale, group_size), h, norm_weight, epsilon)


def int4_lm_head(
    x: np.ndarray, weight_groups: np.ndarray, weight_scale: np.ndarray, group_size: int
) -> tuple[np.ndarray]:
    """x [B, L, K], weight as in int4_group_linear -> logits [B, L, V]."""
    return (_product(x, weight_groups, weight_scale, group_size),)


def int4_attention_projections(
    x: np.ndarray, q_groups: np.ndarray, q_scale: np.ndarray, k_groups: np.ndarray, k_scale: np.ndarray,
    v_groups: np.ndarray, v_scale: np.ndarray, group_size: int,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """x [B, T, K], weights as in int4_group_linear -> q, k, v [B, T, N]."""
    weights = ((q_groups, q_scale), (k_groups, k_scale), (v_groups, v_scale))
    return tuple(_product(x, groups, scale, group_size) for groups, scale in weights)


def int4_delta_net_projections(
    x: np.ndarray, qkv_groups: np.ndarray, qkv_scale: np.ndarray, z_groups: np.ndarray, z_scale: np.ndarray,
    a_weight: np.ndarray, b_weight: np.ndarray, group_size: int,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """x [B, T, K], weights as in int4_group_linear and [N, K] -> qkv, z, a, b [B, T, N]."""
    qkv, z = _product(x, qkv_groups, qkv_scale, group_size), _product(x, z_groups, z_scale, group_size)
    return qkv, z, x @ a_weight.T, x @ b_weight.T
