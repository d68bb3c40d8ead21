"""Float64 reference of the LM head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best(logits: NDArray, ids: NDArray, limit: int, keep: int) -> tuple[NDArray, NDArray]:
    """The `keep` largest of logits [rows, n] among ids [n] below `limit`, largest first, equal ones by id."""
    logits = np.where(ids < limit, logits, -np.inf)
    order = np.lexsort((np.broadcast_to(ids, logits.shape), -logits), axis=-1)[:, :keep]
    return np.take_along_axis(logits, order, -1), ids[order]
