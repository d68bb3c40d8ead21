"""Float64 references of the residual sum and the RMS norm after it, and of the norm alone."""

from __future__ import annotations

import numpy as np


def residual_rms_norm(
    x: np.ndarray, h: np.ndarray, weight: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """x, h [..., D], weight [D] -> y [..., D] and the new h [..., D]; weight multiplies as 1 + weight."""
    return *rms_norm(h + x, weight, epsilon), h + x


def rms_norm(h: np.ndarray, weight: np.ndarray, epsilon: float) -> tuple[np.ndarray]:
    """h [..., D], weight [D] -> y [..., D]; weight multiplies as 1 + weight."""
    return (h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + epsilon) * (1.0 + weight),)
