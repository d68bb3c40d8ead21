"""References of the ops that move rows."""

from __future__ import annotations

import numpy as np


def embedding(ids: np.ndarray, table: np.ndarray) -> tuple[np.ndarray]:
    """ids [B, T], table [V, H] -> y [B, T, H]."""
    return (table[ids],)


def take_rows(x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray]:
    """x [B, T, H], index [B, L] -> y [B, L, H]."""
    return (np.take_along_axis(x, index[..., None], axis=1),)


def concat_rows(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray]:
    """first [B, T, H], second [B, T, H2] -> y [B, T, H + H2]."""
    return (np.concatenate([first, second], axis=-1),)
