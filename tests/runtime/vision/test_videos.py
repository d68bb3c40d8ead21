"""Videos from files and from frames: which frames are seen, when they were, and what is refused."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltart.errors import GenerationError
from deltart.runtime.vision.images import MediaLimits
from deltart.runtime.vision.load import Processing, load_video
from deltart.runtime.vision.patches import resized
from deltart.runtime.vision.sizes import frame_times, sampled_frames, video_size
from support.vision import ENTRY, photograph


def gray_frames(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose brightness says which they are."""
    levels = np.linspace(20, 230, count).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)))


def video_file(frames: np.ndarray, fps: Fraction, kind: str) -> bytes:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    target = io.BytesIO()
    codec = {"mp4": "mpeg4", "webm": "libvpx", "matroska": "mpeg4", "avi": "mpeg4"}[kind]
    with av.open(target, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def test_frames_are_sampled_and_resized_one_by_one() -> None:
    frames = np.stack([photograph(70, 90, seed) for seed in range(31)])
    medium = load_video(frames, ENTRY, fps=10)
    indices = sampled_frames(31, 10, ENTRY)
    height, width = video_size(len(indices), 70, 90, ENTRY)
    assert medium.grid == (3, height // 16, width // 16)
    expected = np.stack([resized(Image.fromarray(frames[i]), height, width) for i in indices])
    assert np.array_equal(medium.frames, expected)
    assert medium.times == frame_times(indices.tolist(), 10, ENTRY)


def test_a_list_of_pictures_is_a_video_too() -> None:
    frames = [Image.fromarray(photograph(64, 64, seed)) for seed in range(5)]
    array = np.stack([np.asarray(frame) for frame in frames])
    one, other = (load_video(given, ENTRY, fps=2) for given in (frames, array))
    assert np.array_equal(one.frames, other.frames)
    assert one.digest == other.digest != load_video(array[:4], ENTRY, fps=2).digest


def test_all_frames_where_none_are_left_out() -> None:
    medium = load_video(gray_frames(9), ENTRY, fps=30, processing=Processing(sample=False))
    assert len(medium.frames) == 9
    assert medium.grid[0] == 5 == len(medium.times)
    assert medium.times[-1] == 8 / 30
    assert len(load_video(gray_frames(90), ENTRY, fps=30, processing=Processing(fps=4)).frames) == 12


@pytest.mark.parametrize("kind", ["mp4", "webm", "matroska", "avi"])
@pytest.mark.parametrize(("count", "fps"), [(40, Fraction(10)), (61, Fraction(30000, 1001))])
def test_files_of_several_containers(kind: str, count: int, fps: Fraction, tmp_path: Path) -> None:
    frames = gray_frames(count)
    content = video_file(frames, fps, kind)
    (tmp_path / "video").write_bytes(content)
    indices = sampled_frames(count, float(fps), ENTRY)
    for source in (content, tmp_path / "video"):
        medium = load_video(source, ENTRY)
        assert medium.times == pytest.approx(frame_times(indices.tolist(), float(fps), ENTRY), abs=1e-3)
        brightness = medium.frames.reshape(len(medium.frames), -1).mean(1)
        assert np.abs(brightness - frames[indices, 0, 0, 0]).max() < 4  # what the codec loses is less than one step


def test_a_container_that_promises_more_frames_than_it_holds() -> None:
    content = video_file(np.stack([photograph(64, 96, seed) for seed in range(40)]), Fraction(10), "matroska")
    medium = load_video(content[: len(content) * 2 // 3], ENTRY)
    assert 4 <= len(medium.frames) < 8


def test_what_is_refused() -> None:
    frames = gray_frames(5)
    for given, fps, message in (
        (frames, None, "without frames a second"),
        (frames, 0.0, "of 0.0 frames a second"),
        (frames[:1], 2.0, "a video of 1 frame\n"),
        ([], 2.0, "a video of 0 frames"),
        ([frames[0], frames[0][:32]] * 4, 4.0, "frames differ in size"),
    ):
        with pytest.raises(GenerationError, match=message):
            load_video(given, ENTRY, fps=fps)
    with pytest.raises(GenerationError, match="more than 4 frames"):
        load_video(frames, ENTRY, fps=2, limits=MediaLimits(video_frames=4))


def test_files_that_are_refused(tmp_path: Path) -> None:
    content = video_file(gray_frames(20), Fraction(10), "mp4")
    with pytest.raises(GenerationError, match="more than 19 frames"):
        load_video(content, ENTRY, limits=MediaLimits(video_frames=19))
    with pytest.raises(GenerationError, match="pixels a frame"):
        load_video(content, ENTRY, limits=MediaLimits(frame_pixels=64 * 95))
    with pytest.raises(GenerationError, match=f"media of {len(content)} bytes"):
        load_video(content, ENTRY, limits=MediaLimits(video_bytes=len(content) - 1))
    with pytest.raises(GenerationError, match="more than 0 s to decode"):
        load_video(content, ENTRY, limits=MediaLimits(video_seconds=0))
    for wrong in (b"", b"\0" * 5000, content[:100]):
        with pytest.raises(GenerationError, match="a video that can't be read"):
            load_video(wrong, ENTRY)


def test_playlists_open_nothing(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(video_file(gray_frames(20), Fraction(10), "mp4"))
    target = tmp_path / "video.mp4"
    for playlist in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{target}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{target}'\n",
    ):
        with pytest.raises(GenerationError, match="a video that can't be read"):
            load_video(playlist.encode(), ENTRY)


def test_options_of_a_request() -> None:
    asked = Processing.of({"min_pixels": 4096, "max_pixels": 65536, "fps": 1, "do_sample_frames": False})
    assert asked == Processing(4096, 65536, 1, False)
    assert asked.for_images(ENTRY).image_pixels == asked.for_videos(ENTRY).video_pixels == (4096, 65536)
    assert Processing(max_pixels=1024).for_images(ENTRY).image_pixels == (1024, 1024)
    for wrong in ({"max_pixels": 2**30}, {"min_pixels": 5000, "max_pixels": 4000}):
        with pytest.raises(GenerationError, match="pixels"):
            Processing.of(wrong).for_images(ENTRY)
    for wrong in ({"size": 3}, {"fps": "2"}, {"fps": float("nan")}, {"min_pixels": True}, {"do_sample_frames": 1}):
        with pytest.raises(GenerationError, match=next(iter(wrong))):
            Processing.of(wrong)


@pytest.mark.parametrize(("turn", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_videos_are_seen_as_they_are_to_be_shown(turn: int, corner: tuple[int, int]) -> None:
    """A phone's video lies on its side and says so in its track's matrix, which is clockwise."""
    frames = np.zeros((8, 64, 96, 3), np.uint8)
    frames[:, :32, :32] = 255
    content = bytearray(video_file(frames, Fraction(4), "mp4"))
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    matrix = np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 14], np.int32) << 16
    at = content.index(b"tkhd") + 44
    content[at : at + 36] = matrix.astype(">i4").tobytes()
    medium = load_video(bytes(content), ENTRY)
    assert (medium.grid[1] > medium.grid[2]) == (turn in (90, 270))
    bright = medium.frames[0, :, :, 0].astype(int)
    assert bright[corner[0] * 9, corner[1] * 9] > 200
    assert (bright > 128).mean() < 0.25
