"""Pixels to patches: the resize, and the order in which the tower reads them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deltart.manifest import VisionEntry


def resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: an RGB picture resized by Pillow's antialiased bicubic.

    One axis a call, rows first: in one call Pillow 13 takes the columns first for some sizes, which parts from torch's
    kernel, transformers' own, by up to 25 levels. So it is at most 2, in under 1 % of the values.
    """
    if image.width != width:
        image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    if image.height != height:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def patches(frames: np.ndarray, entry: VisionEntry) -> np.ndarray:
    """f32 [T, rows * columns, 3 * temporal_patch * patch^2]: what the tower reads of frames uint8 [n, H, W, 3].

    The last frame is repeated until the frames fill T temporal patches. Patches of a merged block stand together, the
    blocks row by row; a patch's values are ordered by channel, frame, y and x.
    """
    pad = -len(frames) % entry.temporal_patch
    if pad:
        frames = np.concatenate([frames, np.repeat(frames[-1:], pad, axis=0)])
    (count, height, width, _), patch, merge = frames.shape, entry.patch, entry.merge
    blocks = frames.reshape(
        count // entry.temporal_patch, entry.temporal_patch,
        height // patch // merge, merge, patch, width // patch // merge, merge, patch, 3,
    )  # fmt: skip
    ordered = blocks.transpose(
        0, 2, 5, 3, 6, 8, 1, 4, 7
    )  # t, block row, block column, row, column, channel, frame, y, x
    table = _normalized(entry)
    values = np.empty(ordered.shape, np.float32)
    for channel in range(3):
        values[:, :, :, :, :, channel] = table[channel][ordered[:, :, :, :, :, channel]]
    return values.reshape(count // entry.temporal_patch, (height // patch) * (width // patch), -1)


def _normalized(entry: VisionEntry) -> np.ndarray:
    """f32 [3, 256]: the value that every level of every channel stands for; scale and mean are applied at once."""
    levels = np.arange(256, dtype=np.float32)
    mean, std = (np.array(of, np.float32)[:, None] * np.float32(255) for of in (entry.mean, entry.std))
    return (levels - mean) / std
