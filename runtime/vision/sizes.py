"""How large a picture is looked at, which frames of a video are, and when those were.

The rules are those of transformers 5.23 (`smart_resize` of qwen2_vl and qwen3_vl, `sample_frames` and
`_calculate_timestamps` of qwen3_vl), which are the vendor's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deltart.errors import GenerationError
from deltart.manifest import VisionEntry

MAX_ASPECT = 200
FRAME_TOKENS = 768  # of one frame of a video, under `frame_cap`


def image_size(height: int, width: int, entry: VisionEntry) -> tuple[int, int]:
    """(height, width) in pixels that a picture is resized to: multiples of a merged block.

    No frame has more patches than one call of the graph takes.

    Raises:
        GenerationError: a picture without pixels, or one side more than 200 times the other.
    """
    _check("a picture", height, width)
    lowest, highest = entry.image_pixels
    return _fitted(height, width, 1, 1, (lowest, min(highest, _call_pixels(entry))), entry)


def video_size(frames: int, height: int, width: int, entry: VisionEntry) -> tuple[int, int]:
    """(height, width) in pixels that every frame of a video is resized to.

    Raises:
        GenerationError: fewer frames than a temporal patch has, or a shape that `image_size` refuses.
    """
    check_frames(frames, entry)
    if height < 1 or width < 1:
        _check("a video", height, width)
    block = entry.patch * entry.merge
    if height < block or width < block:
        scale = max(block / height, block / width)
        height, width = int(height * scale), int(width * scale)
    _check("a video", height, width)
    lowest, highest = entry.video_pixels
    if entry.frame_cap:
        each = max(min(FRAME_TOKENS * block**2, highest // frames), int(lowest * 1.05))
        highest = each * frames
    highest = min(highest, _call_pixels(entry) * frames)
    counted = round(frames / entry.temporal_patch) * entry.temporal_patch
    return _fitted(height, width, counted, frames, (lowest, highest), entry)


def check_frames(frames: int, entry: VisionEntry) -> None:
    """Raises GenerationError for fewer frames than a temporal patch has."""
    if frames < entry.temporal_patch:
        raise GenerationError(
            f"a video of {frames} frame{'' if frames == 1 else 's'}",
            f"at least {entry.temporal_patch} frames",
            "send a single frame as a picture",
        )


def sampled_frames(total: int, video_fps: float, entry: VisionEntry) -> np.ndarray:
    """int64 [n]: which of a video's `total` frames are looked at, the first and the last among them.

    Args:
        video_fps: frames a second of the video itself.
    """
    count = int(total / video_fps * entry.fps)
    count = min(max(count, entry.min_frames), entry.max_frames, total)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def frame_times(indices: Sequence[int], video_fps: float, entry: VisionEntry) -> tuple[float, ...]:
    """Seconds into the video of every temporal patch of the frames `indices`: between its first and its last frame."""
    padded = [*indices, *([indices[-1]] * (-len(indices) % entry.temporal_patch))]
    seconds = [int(index) / video_fps for index in padded]
    last = entry.temporal_patch - 1
    return tuple((seconds[i] + seconds[i + last]) / 2 for i in range(0, len(seconds), entry.temporal_patch))


def _fitted(
    height: int, width: int, counted: int, frames: int, pixels: tuple[int, int], entry: VisionEntry
) -> tuple[int, int]:
    """Multiples of a block that keep the shape, with a number of pixels within `pixels` over all frames.

    Args:
        counted: frames, rounded to whole temporal patches.
    """
    block, (lowest, highest) = entry.patch * entry.merge, pixels
    rows, columns = round(height / block) * block, round(width / block) * block
    if counted * rows * columns > highest:
        shrink = math.sqrt(frames * height * width / highest)
        rows = max(block, math.floor(height / shrink / block) * block)
        columns = max(block, math.floor(width / shrink / block) * block)
    elif counted * rows * columns < lowest:
        grow = math.sqrt(lowest / (frames * height * width))
        rows, columns = math.ceil(height * grow / block) * block, math.ceil(width * grow / block) * block
    return rows, columns


def _call_pixels(entry: VisionEntry) -> int:
    return entry.max_patches * entry.patch**2


def _check(what: str, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise GenerationError(f"{what} of {width} x {height} pixels", "at least one pixel")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise GenerationError(
            f"{what} of {width} x {height} pixels, one side more than {MAX_ASPECT} times the other",
            f"sides within a factor of {MAX_ASPECT}",
            "cut it into pieces",
        )
