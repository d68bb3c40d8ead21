"""Float64 reference of the causal depthwise convolution with state."""

from __future__ import annotations

import numpy as np


def causal_conv1d(
    x: np.ndarray, weight: np.ndarray, state: np.ndarray, n_commit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """x [B, T, C], weight [C, 1, W], state [B, W-1, C] -> y [B, T, C] = silu(conv), state' [B, W-1, C].

    state' holds the last W-1 raw inputs before token n_commit[b]; later tokens leave no trace in it.
    """
    width, length = weight.shape[-1], x.shape[1]
    padded = np.concatenate([state, x], axis=1)  # [B, W-1+T, C]
    y = sum(padded[:, j : j + length] * weight[:, 0, j] for j in range(width))
    kept = n_commit[:, None] + np.arange(width - 1)  # [B, W-1]
    return y / (1.0 + np.exp(-y)), np.take_along_axis(padded, kept[..., None], axis=1)
