"""The activation and parameter types of the kernels, as numpy sees them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

NUMPY = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to "f32" or "bf16", contiguous."""
    return np.ascontiguousarray(values.astype(np.float32, copy=False).astype(NUMPY[dtype]))


def poisoned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An output buffer full of NaN: an element that a kernel forgets to write is seen."""
    return np.full(shape, np.nan, dtype=np.float32).astype(NUMPY[dtype])
