"""Pictures and videos of any source, made ready for the tower, with what a request may change about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from deltart.errors import GenerationError
from deltart.manifest import VisionEntry
from deltart.runtime.vision.images import MediaLimits, read_image
from deltart.runtime.vision.medium import Kind, Medium
from deltart.runtime.vision.patches import resized
from deltart.runtime.vision.sizes import image_size
from deltart.runtime.vision.videos import clip_of_file, clip_of_frames

# What `mm_processor_kwargs` may hold: kinds of values, and what they are to be.
_OPTIONS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "min_pixels": ((int,), "a whole number above 0"),
    "max_pixels": ((int,), "a whole number above 0"),
    "fps": ((int, float), "a number above 0"),
    "do_sample_frames": ((bool,), "true or false"),
}


@dataclass(frozen=True)
class Processing:
    """What a request may change about the reading of its media.

    Attributes:
        min_pixels, max_pixels: of a picture, or of all frames of a video together, after resizing; never beyond what
            the artifact says. None is the artifact's.
        fps: frames of a video looked at a second; None is the artifact's.
        sample: look at some frames of a video only; else at all of them.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    sample: bool = True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Processing:
        """From `mm_processor_kwargs` as vLLM's clients send them: min_pixels, max_pixels, fps, do_sample_frames.

        Raises:
            GenerationError: another name, or a value of another kind.
        """
        for name, value in given.items():
            if name not in _OPTIONS:
                raise GenerationError(f"media option {name!r}"[:200], ", ".join(_OPTIONS))
            kinds, expected = _OPTIONS[name]
            right = isinstance(value, kinds) and (kinds == (bool,) or not isinstance(value, bool))
            if not right or (kinds != (bool,) and not (math.isfinite(value) and value > 0)):
                raise GenerationError(f"{name} = {value!r}"[:200], expected)
        return cls(
            given.get("min_pixels"), given.get("max_pixels"), given.get("fps"), given.get("do_sample_frames", True)
        )

    def for_images(self, entry: VisionEntry) -> VisionEntry:
        """The artifact's settings with these in their place.

        Raises:
            GenerationError: more pixels than the artifact takes, or a minimum above the maximum.
        """
        return replace(entry, image_pixels=self._pixels(entry.image_pixels))

    def for_videos(self, entry: VisionEntry) -> VisionEntry:
        """As `for_images`, for videos."""
        fps = entry.fps if self.fps is None else self.fps
        return replace(entry, video_pixels=self._pixels(entry.video_pixels), fps=fps)

    def _pixels(self, own: tuple[int, int]) -> tuple[int, int]:
        highest = own[1] if self.max_pixels is None else self.max_pixels
        lowest = min(own[0], highest) if self.min_pixels is None else self.min_pixels
        if highest > own[1] or lowest > highest:
            raise GenerationError(f"{lowest} to {highest} pixels", f"at most {own[1]}, the lower bound first")
        return lowest, highest


def load_image(
    source: Any, entry: VisionEntry, processing: Processing | None = None, limits: MediaLimits | None = None
) -> Medium:
    """The picture `source`, as `read_image` takes it, ready for the tower.

    Raises:
        GenerationError: it can't be read, or its shape is refused.
    """
    chosen = (processing or Processing()).for_images(entry)
    image = read_image(source, limits)
    height, width = image_size(image.height, image.width, chosen)
    return as_medium("image", resized(image, height, width)[None], entry)


def load_video(
    source: Any,
    entry: VisionEntry,
    fps: float | None = None,
    processing: Processing | None = None,
    limits: MediaLimits | None = None,
) -> Medium:
    """The video `source`, ready for the tower: a path or the bytes of a file, or a sequence or array of its frames.

    Args:
        fps: frames a second of given frames.

    Raises:
        GenerationError: it can't be read, is too short, or nobody says how fast it is.
        MissingDependencyError: it is a file, and PyAV is not installed.
    """
    asked = processing or Processing()
    chosen, bounds = asked.for_videos(entry), limits or MediaLimits()
    if isinstance(source, (Sequence, np.ndarray)) and not isinstance(source, (str, bytes, bytearray)):
        clip = clip_of_frames(source, fps, chosen, bounds, asked.sample)
    else:
        clip = clip_of_file(source, chosen, bounds, asked.sample)
    return as_medium("video", clip.frames, entry, clip.times)


class LoadMedium(Protocol):
    """What loads a picture or a video."""

    def __call__(
        self, kind: Kind, source: Any, entry: VisionEntry, fps: float | None, processing: Processing | None,
        limits: MediaLimits | None,
    ) -> Medium: ...  # fmt: skip


def load_medium(
    kind: Kind, source: Any, entry: VisionEntry, fps: float | None = None, processing: Processing | None = None,
    limits: MediaLimits | None = None,
) -> Medium:  # fmt: skip
    """As `load_image` or `load_video`, whichever `kind` is; `fps` is the latter's."""
    if kind == "image":
        return load_image(source, entry, processing, limits)
    return load_video(source, entry, fps, processing, limits)


def as_medium(kind: Kind, frames: np.ndarray, entry: VisionEntry, times: tuple[float, ...] = ()) -> Medium:
    """The medium of frames uint8 [n, height, width, 3] whose sides are whole merged blocks; times as Medium's."""
    count, height, width, _ = frames.shape
    grid = (-(-count // entry.temporal_patch), height // entry.patch, width // entry.patch)
    return Medium(kind, frames, grid, entry.merge, times)
