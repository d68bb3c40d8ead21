"""Files decoded in children: what they show is what is seen without, and a child that is lost harms nobody."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltart.errors import GenerationError
from deltart.runtime.vision.decoder import Decoder
from deltart.runtime.vision.images import MediaLimits
from deltart.runtime.vision.load import Processing, load_medium
from support.vision import ENTRY, photograph

SMALL = replace(ENTRY, image_pixels=(4096, 65536), video_pixels=(4096, 262144))


def png(pixels: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def mp4(count: int) -> bytes:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for seed in range(count):
            frame = av.VideoFrame.from_ndarray(photograph(64, 96, seed), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


PICTURE = png(photograph(90, 130))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    made.start()
    yield made
    made.close()


def child_of(decoder: Decoder) -> int:
    """The process that the next file goes to."""
    return decoder._idle[-1]._process.pid


def test_what_is_seen_is_the_same(decoder: Decoder, tmp_path: Path) -> None:
    clip = mp4(25)
    (tmp_path / "clip.mp4").write_bytes(clip)
    (tmp_path / "picture.png").write_bytes(PICTURE)
    process = child_of(decoder)
    for kind, source, asked in (
        ("image", PICTURE, None), ("image", memoryview(PICTURE), None), ("image", tmp_path / "picture.png", None),
        ("image", str(tmp_path / "picture.png"), Processing(max_pixels=8192)), ("video", clip, Processing(fps=1)),
        ("video", tmp_path / "clip.mp4", Processing(sample=False)), ("image", photograph(50, 60), None),
    ):  # fmt: skip
        found = decoder.load(kind, source, SMALL, None, asked)
        right = load_medium(kind, source if not isinstance(source, memoryview) else bytes(source), SMALL, None, asked)
        assert found.digest == right.digest and found.times == right.times and found.grid == right.grid
        found.frames[0, 0, 0, 0] += 1  # the caller's own
    assert child_of(decoder) == process


@pytest.mark.parametrize(
    ("kind", "source", "limits"),
    [
        ("image", b"no picture", MediaLimits()),
        ("image", PICTURE[:-40], MediaLimits()),
        ("image", PICTURE, MediaLimits(pixels=100)),
        ("image", PICTURE, MediaLimits(bytes=100)),
        ("image", "/nowhere/picture.png", MediaLimits()),
        ("image", png(np.zeros((1, 900, 3), np.uint8)), MediaLimits()),
        ("video", b"no video", MediaLimits()),
    ],
)
def test_errors_are_the_same(decoder: Decoder, kind: str, source: object, limits: MediaLimits) -> None:
    if kind == "video":
        pytest.importorskip("av", reason="PyAV is not installed")
    process = child_of(decoder)
    with pytest.raises(GenerationError) as right:
        load_medium(kind, source, SMALL, limits=limits)  # type: ignore[arg-type]
    with pytest.raises(GenerationError) as found:
        decoder.load(kind, source, SMALL, limits=limits)  # type: ignore[arg-type]
    assert str(found.value) == str(right.value)
    assert child_of(decoder) == process


def test_a_decoder_that_hangs_is_ended(decoder: Decoder) -> None:
    decoder.load("image", PICTURE, SMALL)
    process = child_of(decoder)
    os.kill(process, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(GenerationError, match=r"a picture that takes more than 0.3 s to decode"):
        decoder.load("image", PICTURE, SMALL, limits=MediaLimits(seconds=0.3))
    assert time.monotonic() - began < 5
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert decoder.load("image", PICTURE, SMALL).digest == load_medium("image", PICTURE, SMALL).digest


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGSEGV, "crashes its decoder"), (signal.SIGKILL, "its decoder could not finish")]
)
def test_a_decoder_that_dies_over_a_file(decoder: Decoder, number: signal.Signals, words: str) -> None:
    decoder.load("image", PICTURE, SMALL)
    process = child_of(decoder)
    os.kill(process, signal.SIGSTOP)  # it is asked, and does not come to answer

    def die() -> None:
        os.kill(process, number)
        os.kill(process, signal.SIGCONT)

    timer = threading.Timer(0.3, die)
    timer.start()
    with pytest.raises(GenerationError, match=f"a picture that {words}"):
        decoder.load("image", PICTURE, SMALL)
    timer.join()
    assert decoder.load("image", PICTURE, SMALL).grid == load_medium("image", PICTURE, SMALL).grid


def test_a_decoder_that_died_idle_is_replaced(decoder: Decoder) -> None:
    decoder.load("image", PICTURE, SMALL)
    process = child_of(decoder)
    os.kill(process, signal.SIGKILL)
    while decoder._idle[-1].alive:
        time.sleep(0.01)
    assert decoder.load("image", PICTURE, SMALL).grid == load_medium("image", PICTURE, SMALL).grid
    assert child_of(decoder) != process


def test_memory_is_bounded() -> None:
    """A picture of 100 kB that takes 240 MB: as white as it is, nothing but its size speaks against it."""
    small, bomb = Decoder(memory=1 << 30), png(np.full((9000, 9000, 3), 255, np.uint8))
    try:
        process = small.load("image", PICTURE, SMALL) and child_of(small)
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        small.close()
    tight = Decoder(memory=taken + (100 << 20))
    try:
        tight.load("image", PICTURE, SMALL)
        with pytest.raises(GenerationError, match=r"a picture that needs more than \d+ MiB of memory to decode"):
            tight.load("image", bomb, SMALL)
        assert tight.load("image", PICTURE, SMALL).grid == load_medium("image", PICTURE, SMALL).grid
    finally:
        tight.close()


def test_files_side_by_side(decoder: Decoder) -> None:
    pictures = [png(photograph(80, 120, seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda picture: decoder.load("image", picture, SMALL).digest, pictures))
    assert found == [load_medium("image", picture, SMALL).digest for picture in pictures]
    assert 1 <= len(decoder._idle) <= 2


def test_nothing_is_left_running() -> None:
    made = Decoder()
    made.start()
    made.load("image", PICTURE, SMALL)
    process = child_of(made)
    made.close()
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    made.load("image", PICTURE, SMALL)  # by a child of its own, which is not kept
    assert not made._idle
