"""Reference of the rotary table."""

from __future__ import annotations

import numpy as np


def rotary_table(
    position_ids: np.ndarray, axes: np.ndarray, inv_freq: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """position_ids [3, B, T], axes [P], inv_freq [P] -> cos, sin [B, T, P] of the float32 angles."""
    positions = position_ids[axes].transpose(1, 2, 0)
    angles = (positions.astype(np.float32) * inv_freq.astype(np.float32)).astype(np.float64)
    return scale * np.cos(angles), scale * np.sin(angles)
