"""Float64 references of the LM head, and how a bfloat16 one becomes E4M3."""

from __future__ import annotations

import numpy as np

from deltart.dtypes import BF16, E4M3, E4M3_MAX

GROUP = 128  # columns of a row with one scale
STEPS = 16  # scales that are tried for a group: amax / 448 times 1, 17/16, ..., 31/16
LEAST = np.float32(2.0**-100)  # amax of a group below which it is all zeros


def lm_head(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray]:
    """x [B, L, K], weight [V, K] -> logits [B, L, V]."""
    return (x @ weight.T,)


def best(logits: np.ndarray, ids: np.ndarray, limit: int, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The `keep` largest of logits [rows, n] among ids [n] below `limit`, largest first, equal ones by id."""
    logits = np.where(ids < limit, logits, -np.inf)
    order = np.lexsort((np.broadcast_to(ids, logits.shape), -logits), axis=-1)[:, :keep]
    return np.take_along_axis(logits, order, -1), ids[order]


def fp8_lm_head(x: np.ndarray, weight: np.ndarray, weight_scale: np.ndarray) -> tuple[np.ndarray]:
    """x [B, L, K], weight [V, K] (E4M3 values), weight_scale [V, ceil(K/128)] -> logits [B, L, V]."""
    return lm_head(x, dequantized(weight, weight_scale))


def dequantized(weight: np.ndarray, weight_scale: np.ndarray) -> np.ndarray:
    """E4M3 values [V, K] times their scales [V, ceil(K/128)], float64."""
    scale = np.repeat(weight_scale.astype(np.float64), GROUP, 1)
    return weight.astype(np.float64) * scale[:, : weight.shape[1]]


def fp8_head_bytes(rows: int, columns: int) -> int:
    """Of codes and scales."""
    return rows * (columns + 2 * -(-columns // GROUP))


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight [V, K] (bfloat16) as E4M3 [V, K] and bfloat16 scales [V, ceil(K/128)].

    Of the scales that are tried for a group, the first that leaves the least sum of squared errors. A group with a
    value that is not finite has the scale NaN, and so NaN logits; one that is all zero has 1.
    """
    wide = weight.astype(np.float32)
    groups = np.pad(wide, ((0, 0), (0, -wide.shape[1] % GROUP))).reshape(len(wide), -1, GROUP)
    amax = np.abs(groups).max(-1)
    least, chosen = np.full(amax.shape, np.inf, np.float32), np.ones(amax.shape, BF16.numpy)
    codes = np.zeros(groups.shape, E4M3.numpy)
    for step in range(STEPS):
        scale = (amax / np.float32(E4M3_MAX) * np.float32((STEPS + step) / STEPS)).astype(BF16.numpy)
        divisor = np.where(amax < LEAST, 1, scale).astype(np.float32)[..., None]
        with np.errstate(invalid="ignore"):  # infinities: see above
            tried = np.clip(groups / divisor, -E4M3_MAX, E4M3_MAX).astype(E4M3.numpy)
            error = np.square(groups - tried.astype(np.float32) * divisor).sum(-1)
        better = (error < least) & ~(amax < LEAST)
        least, chosen = np.where(better, error, least), np.where(better, scale, chosen)
        codes[better] = tried[better]
    chosen[~np.isfinite(amax)] = np.nan
    return codes.reshape(len(wide), -1)[:, : wide.shape[1]], chosen
