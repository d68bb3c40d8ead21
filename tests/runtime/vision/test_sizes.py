"""Sizes, samplings and times against transformers' own functions, over many random ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from deltart.errors import GenerationError
from deltart.runtime.vision.sizes import frame_times, image_size, sampled_frames, video_size
from support.vision import ENTRY, transformers_function

VIDEOS = "qwen3_vl.video_processing_qwen3_vl"
BOUNDS = ((65536, 16777216), (4096, 25165824), (1024, 4096), (3136, 1003520), (50000, 60000))


def side(rng: random.Random) -> int:
    return rng.choice([rng.randint(1, 60), rng.randint(1, 700), rng.randint(1, 9000)])


def outcome(call: Callable[..., tuple[int, int]], *arguments: object) -> tuple[int, int] | None:
    """The result; None where it was refused."""
    try:
        return tuple(call(*arguments))
    except (ValueError, ZeroDivisionError, GenerationError):
        return None


def test_image_sizes_equal_transformers() -> None:
    rng, refused = random.Random(1), 0
    for _ in range(20_000):
        height, width, bounds = side(rng), side(rng), rng.choice(BOUNDS)
        entry = replace(ENTRY, image_pixels=bounds, max_patches=10**9)
        found = outcome(image_size, height, width, entry)
        expected = outcome(smart_resize, height, width, 32, *bounds)
        assert found == expected, (height, width, bounds)
        refused += found is None
    assert 50 < refused < 2000


def test_video_sizes_equal_transformers() -> None:
    theirs = transformers_function(VIDEOS, "smart_resize")
    rng, refused = random.Random(2), 0
    for _ in range(20_000):
        frames, height, width, bounds = rng.randint(1, 40), side(rng), side(rng), rng.choice(BOUNDS)
        entry = replace(ENTRY, video_pixels=bounds, max_patches=10**9)
        found = outcome(video_size, frames, height, width, entry)
        expected = outcome(theirs, frames, height, width, 2, 32, *bounds)
        assert found == expected, (frames, height, width, bounds)
        refused += found is None
    assert 50 < refused < 3000


def test_capped_frames_equal_transformers() -> None:
    theirs = transformers_function(VIDEOS, "smart_resize")
    rng = random.Random(3)
    for _ in range(2000):
        frames, height, width = rng.randint(2, 768), rng.randint(100, 2000), rng.randint(100, 2000)
        each = max(min(768 * 1024, 25165824 // frames), int(4096 * 1.05))
        expected = tuple(theirs(frames, height, width, 2, 32, 4096, each * frames))
        assert video_size(frames, height, width, replace(ENTRY, frame_cap=True)) == expected


def test_no_frame_is_larger_than_a_call() -> None:
    entry = replace(ENTRY, max_patches=1024)
    assert image_size(3000, 4000, entry) == image_size(3000, 4000, replace(ENTRY, image_pixels=(65536, 1024 * 256)))
    for height, width in (image_size(3000, 4000, entry), video_size(4, 3000, 4000, entry)):
        assert height * width <= 1024 * 256


def test_samplings_and_times_equal_transformers() -> None:
    sample = transformers_function(VIDEOS, "Qwen3VLVideoProcessor", "sample_frames")
    rng = random.Random(4)
    for _ in range(10_000):
        total, rate = rng.randint(1, 3000), rng.choice([23.976, 24, 25, 29.97, 30, 60, rng.uniform(0.2, 120)])
        entry = replace(ENTRY, fps=rng.choice([2.0, 2.0, 1.0, 0.5, 7.5]), max_frames=rng.choice([768, 16]))
        processor = SimpleNamespace(fps=entry.fps, min_frames=entry.min_frames, max_frames=entry.max_frames)
        metadata = SimpleNamespace(total_num_frames=total, fps=rate)
        indices = sampled_frames(total, rate, entry)
        assert indices.tolist() == sample(processor, metadata, fps=entry.fps).tolist()
        times = Qwen3VLProcessor._calculate_timestamps(None, indices.tolist(), rate, 2)
        assert list(frame_times(indices.tolist(), rate, entry)) == times


@pytest.mark.parametrize(("height", "width"), [(1, 201), (402, 2), (0, 5)])
def test_shapes_that_are_refused_are_named(height: int, width: int) -> None:
    with pytest.raises(GenerationError, match=f"{width} x {height} pixels"):
        image_size(height, width, ENTRY)


def test_one_frame_is_no_video() -> None:
    with pytest.raises(GenerationError, match="a video of 1 frame\n"):
        video_size(1, 64, 64, ENTRY)
