"""What the tower's graph takes beside the patches: where each patch lies, for the position table and for RoPE."""

from __future__ import annotations

import numpy as np

from deltart.manifest import VisionEntry


def grid_inputs(rows: int, columns: int, entry: VisionEntry) -> dict[str, np.ndarray]:
    """Inputs for frames of rows x columns patches, in the patches' order.

    Returns:
        pos_index int64 [S, 4] and pos_weight f32 [S, 4]: rows of the position table to be added, bilinearly between
        its corners; cos and sin f32 [S, head_dim / 2] of the rotary angles, those of the row before those of the
        column.
    """
    row, column = _order(rows, columns, entry.merge)
    row_taps, row_weights = _taps(rows, entry.grid_side)
    column_taps, column_weights = _taps(columns, entry.grid_side)
    index = row_taps[row][:, :, None] * entry.grid_side + column_taps[column][:, None, :]
    weight = row_weights[row][:, :, None] * column_weights[column][:, None, :]
    angles = _angles(max(rows, columns), entry)
    angle = np.concatenate([angles[row], angles[column]], axis=1)
    return {
        "pos_index": index.reshape(-1, 4).astype(np.int64),
        "pos_weight": weight.reshape(-1, 4),
        "cos": np.cos(angle),
        "sin": np.sin(angle),
    }


def _order(rows: int, columns: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every patch: blocks row by row, and so the patches within a block."""
    shape = (rows // merge, merge, columns // merge, merge)
    row, column = np.indices((rows, columns))
    row, column = (axis.reshape(shape).transpose(0, 2, 1, 3).reshape(-1) for axis in (row, column))
    return row, column


def _taps(size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The two places of a table of `side` around each of `size` points spread over it, int64 and f32 [size, 2]."""
    source = np.arange(size, dtype=np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(source)
    lower = np.float32(1) - (source - low)
    places = np.stack([low, np.minimum(low + 1, side - 1)], axis=1).astype(np.int64)
    return places, np.stack([lower, 1 - lower], axis=1)


def _angles(size: int, entry: VisionEntry) -> np.ndarray:
    """f32 [size, head_dim / 4]: the rotary angles of positions 0 to size."""
    axis = entry.head_dim // 2
    exponents = np.arange(0, axis, 2, dtype=np.float32) / np.float32(axis)
    frequencies = np.float32(1) / np.float32(entry.rope_theta) ** exponents
    angles: np.ndarray = np.arange(size, dtype=np.float32)[:, None] * frequencies
    return angles
