"""A video from a file (with PyAV) or from frames: sampled, and resized frame by frame as it is decoded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from deltart.errors import GenerationError, MissingDependencyError
from deltart.manifest import VisionEntry
from deltart.runtime.vision.images import MediaLimits, open_media, read_image
from deltart.runtime.vision.patches import resized
from deltart.runtime.vision.sizes import check_frames, frame_times, sampled_frames, video_size

# Containers that hold their own frames: a playlist would have FFmpeg open what it names.
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif")
_SAFE = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}


@dataclass(frozen=True)
class Clip:
    """Frames of a video that are looked at, uint8 [n, height, width, 3], and the seconds of their temporal patches."""

    frames: np.ndarray
    times: tuple[float, ...]


def clip_of_frames(
    frames: Sequence[Any] | np.ndarray, fps: float | None, entry: VisionEntry, limits: MediaLimits, sample: bool = True
) -> Clip:
    """The clip of given frames, each of them what `read_image` takes.

    Args:
        fps: frames a second of `frames`; without it nothing can be said about when they were.
        sample: look at `entry.fps` of them a second, rather than at all.

    Raises:
        GenerationError: no frames a second, too few or too many frames, or frames of several sizes.
    """
    if fps is None:
        raise GenerationError(
            "a video without frames a second", "fps beside the frames", "say how fast they were taken"
        )
    _check_count(len(frames), limits)
    _check_rate(fps)
    indices = sampled_frames(len(frames), fps, entry) if sample else np.arange(len(frames))
    images = [read_image(frames[index], limits) for index in indices.tolist()]
    if len({image.size for image in images}) > 1:
        raise GenerationError("a video whose frames differ in size", "frames of one size", "resize them to one size")
    return _clip(iter(images), indices, fps, entry)


def clip_of_file(source: Any, entry: VisionEntry, limits: MediaLimits, sample: bool = True) -> Clip:
    """The clip of a video's file, given as a path or as bytes.

    Args:
        sample: look at `entry.fps` of its frames a second, rather than at all.

    Raises:
        GenerationError: it is no video, damaged, too large, or of unknown speed.
        MissingDependencyError: PyAV is not installed.
    """
    total = _count(source, limits, decode=False)
    while True:
        with _stream(source, limits) as (container, stream):
            fps = _rate(stream)
            indices = sampled_frames(total, fps, entry) if sample else np.arange(total)
            clip = _clip(_wanted(container, stream, indices, limits), indices, fps, entry)
        if len(clip.frames) == len(indices):
            return clip
        total = _count(source, limits, decode=True)  # the container promised frames that it does not hold


def _clip(images: Iterator[Image.Image], indices: np.ndarray, fps: float, entry: VisionEntry) -> Clip:
    """Resize one by one, so that no more than the result is in memory. It ends where `images` end."""
    check_frames(len(indices), entry)
    frames: list[np.ndarray] = []
    for image in images:
        height, width = video_size(len(indices), image.height, image.width, entry)
        frames.append(resized(image, height, width))
    return Clip(np.stack(frames), frame_times(indices[: len(frames)].tolist(), fps, entry))


@contextmanager
def _stream(source: Any, limits: MediaLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, open."""
    try:
        import av
    except ModuleNotFoundError as problem:
        raise MissingDependencyError(
            "PyAV is not installed", "it, to decode videos", "pip install 'deltart[video]', or send frames"
        ) from problem
    try:
        with open_media(source, limits.video_bytes) as file, av.open(file, options=_SAFE) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise GenerationError("a file without a video stream", "a video", "send sound as text")
            pixels = stream.codec_context.width * stream.codec_context.height
            if pixels > limits.frame_pixels:
                raise GenerationError(
                    f"a video of {pixels} pixels a frame", f"at most {limits.frame_pixels}", "send a smaller video"
                )
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError, ValueError) as problem:
        raise GenerationError(
            f"a video that can't be read: {problem}", "a whole file of a common format", "check the file"
        ) from problem


def _count(source: Any, limits: MediaLimits, decode: bool) -> int:
    """Frames of the video: as its packets say, or by decoding them all."""
    with _stream(source, limits) as (container, stream):
        found = container.decode(stream) if decode else (p for p in container.demux(stream) if p.size)
        total = 0
        for total, _ in enumerate(found, start=1):
            _check_count(total, limits)
    return total


def _wanted(container: Any, stream: Any, indices: np.ndarray, limits: MediaLimits) -> Iterator[Image.Image]:
    """The frames of those numbers, as they are to be seen."""
    left = iter(indices.tolist())
    wanted = next(left, None)
    until = time.monotonic() + limits.video_seconds
    for number, frame in enumerate(container.decode(stream)):
        if time.monotonic() > until:
            seconds = f"{limits.video_seconds:g} s"
            raise GenerationError(f"a video that takes more than {seconds} to decode", "a shorter one", "send frames")
        while number == wanted:
            turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
            yield Image.fromarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)))
            wanted = next(left, None)
        if wanted is None:
            return


def _rate(stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise GenerationError("a video that does not say how fast it is", "frames a second", "send frames with fps")
    return float(rate)


def _check_rate(fps: float) -> None:
    if not (np.isfinite(fps) and fps > 0):
        raise GenerationError(f"a video of {fps} frames a second", "a number above 0")


def _check_count(total: int, limits: MediaLimits) -> None:
    if total > limits.video_frames:
        raise GenerationError(
            f"a video of more than {limits.video_frames} frames", "a shorter one", "cut it, or send frames of it"
        )
