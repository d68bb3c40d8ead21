"""Float64 reference of the LM head."""

from __future__ import annotations

import numpy as np


def lm_head(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray]:
    """x [B, L, K], weight [V, K] -> logits [B, L, V]."""
    return (x @ weight.T,)


def best(logits: np.ndarray, ids: np.ndarray, limit: int, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest of logits [rows, n] among ids [n] below `limit`, largest first, equal ones by id."""
    logits = np.where(ids < limit, logits, -np.inf)
    order = np.lexsort((np.broadcast_to(ids, logits.shape), -logits), axis=-1)[:, :keep]
    return np.take_along_axis(logits, order, -1), ids[order]
