"""The one table of tolerances: relative RMS error of a kernel against its op's float64 reference."""

from __future__ import annotations

import numpy as np

TOLERANCE = {
    "f32": 1e-5,  # f32 activations: accumulation order only
    "bf16": 4e-3,  # bf16 activations: one rounding of the output (1.7e-3) and bf16 tensor-core operands
    "state": 1e-4,  # the f32 state, whatever the activations: it is carried over the whole context
}


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||. Any NaN or infinity in `found` gives infinity.

    Two empty or all-zero arrays are equal (0); anything else against an all-zero reference is infinity.
    """
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape} against {expected.shape}")
    error, scale = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if not np.isfinite(error):
        return float("inf")
    if scale == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float(error / scale)
