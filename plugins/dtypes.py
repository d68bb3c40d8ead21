"""The activation and parameter types of the kernels, as numpy sees them."""

from __future__ import annotations

import numpy as np

from deltart.dtypes import BY_SHORT


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to "f32" or "bf16", contiguous."""
    return np.ascontiguousarray(values.astype(np.float32, copy=False).astype(BY_SHORT[dtype].numpy))


def poisoned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An output buffer full of NaN: an element that a kernel forgets to write is seen."""
    return np.full(shape, np.nan, dtype=np.float32).astype(BY_SHORT[dtype].numpy)
