"""Float64 reference of the residual sum and the RMS norm after it."""

from __future__ import annotations

import numpy as np


def residual_rms_norm(
    x: np.ndarray, h: np.ndarray, weight: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """x, h [rows, D], weight [D] -> y [rows, D] and the new h [rows, D]; weight multiplies as 1 + weight."""
    h = h + x
    return h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + epsilon) * (1.0 + weight), h
