"""Float64 reference of the gated RMS norm."""

from __future__ import annotations

import numpy as np


def gated_rms_norm(x: np.ndarray, weight: np.ndarray, z: np.ndarray, epsilon: float) -> tuple[np.ndarray]:
    """x, z [B, T, H*D], weight [D] -> y [B, T, H*D]; weight multiplies as it is (no 1 + w)."""
    heads = x.reshape(*x.shape[:2], -1, weight.shape[0])  # [B, T, H, D]
    normed = heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + epsilon) * weight
    return (normed.reshape(x.shape) * z / (1.0 + np.exp(-z)),)
