"""Float64 references of the plain linears."""

from __future__ import annotations

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray]:
    """x [..., K], weight [N, K] -> y [..., N]."""
    return (x @ weight.T,)


def linear_gate_up(x: np.ndarray, weight: np.ndarray, up_weight: np.ndarray) -> tuple[np.ndarray]:
    """x [..., K], weight and up_weight [N, K] -> y [..., N]."""
    return silu_mul(x @ weight.T, x @ up_weight.T)


def silu_mul(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray]:
    """gate, up [..., N] -> y [..., N]."""
    return (gate / (1.0 + np.exp(-gate)) * up,)
