"""Causal depthwise conv1d of width 4 with SiLU, written out tap by tap in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TAPS = 4


def from_inputs(inputs: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    """`causal_conv1d` of operands by name, of any float type."""
    x, weight, state = (inputs[name].astype(np.float64) for name in ("x", "weight", "state"))
    return causal_conv1d(x, weight, state, inputs["n_tokens"])


def causal_conv1d(x: NDArray, weight: NDArray, state: NDArray, n_tokens: NDArray) -> tuple[NDArray, NDArray]:
    """y [B, T, C] and the new state [B, 3, C], both float64. y at or beyond n_tokens means nothing."""
    history = np.concatenate([state, x], axis=1)  # [B, 3 + T, C]
    y = sum(history[:, i : i + x.shape[1]] * weight[:, 0, i] for i in range(TAPS))
    new_state = np.stack([row[n : n + TAPS - 1] for row, n in zip(history, n_tokens, strict=True)])
    with np.errstate(over="ignore"):
        return y / (1 + np.exp(-y)), new_state
