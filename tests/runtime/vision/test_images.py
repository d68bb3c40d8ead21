"""Pictures of every kind: how they are seen, and what is refused before it is decoded."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltart.errors import GenerationError
from deltart.runtime.vision.images import MediaLimits, read_image
from support.peak import PEAK
from support.vision import photograph

RED, GREEN, WHITE = (255, 0, 0), (0, 200, 0), (255, 255, 255)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))  # type: ignore[return-value]


def huge_png(side: int) -> bytes:
    """A PNG of one colour whose bytes are few."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # one bit a pixel
    packed, row = zlib.compressobj(9), bytes(1 + -(-side // 8))
    rows = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_files_bytes_and_pictures_are_one(kind: str, tmp_path: Path) -> None:
    image = Image.fromarray(photograph(20, 30))
    image = image.quantize(8) if kind == "GIF" else image
    content = file_of(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "picture").write_bytes(content)
    expected = np.asarray(image.convert("RGB"))
    for source in (content, tmp_path / "picture", str(tmp_path / "picture"), image):
        assert np.array_equal(np.asarray(read_image(source)), expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(turn: int) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255  # the corner that the entry says where to put
    exif = Image.Exif()
    exif[0x0112] = turn
    image = read_image(file_of(Image.fromarray(pixels), exif=exif))
    corner = {1: (0, 0), 2: (5, 0), 3: (5, 3), 4: (0, 3), 5: (0, 0), 6: (3, 0), 7: (3, 5), 8: (0, 5)}[turn]
    assert image.size == ((6, 4) if turn < 5 else (4, 6))
    assert pixel(image, *corner) == WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_are_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    image = image.convert(mode)
    seen = read_image(image)
    assert pixel(seen) == WHITE
    assert pixel(seen, 1) == pixel(image.convert("RGB"), 1) != WHITE


def test_a_half_transparent_pixel_is_mixed_with_white() -> None:
    assert pixel(read_image(file_of(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))) == (255, 127, 127)


def test_transparent_entries_of_palettes_and_colours_are_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    seen = read_image(file_of(palette, transparency=0))
    assert (pixel(seen), pixel(seen, 1)) == (WHITE, GREEN)
    assert pixel(read_image(file_of(Image.new("RGB", (1, 1), RED), transparency=RED))) == WHITE


@pytest.mark.parametrize(
    ("mode", "colour"), [("1", 1), ("L", 90), ("CMYK", (0, 255, 255, 0)), ("YCbCr", (80, 90, 200))]
)
def test_other_modes_are_converted(mode: str, colour: object) -> None:
    image = Image.new(mode, (2, 2), colour)  # type: ignore[arg-type]
    assert pixel(read_image(image)) == image.convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled(order: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for source in (file_of(Image.fromarray(values)), Image.fromarray(values.astype(f"{order}u2"))):
        seen = np.asarray(read_image(source))[0, :, 0]
        assert seen.tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_numbers_have_no_range_beyond_that_of_bytes(dtype: type) -> None:
    assert pixel(read_image(Image.fromarray(np.full((1, 1), 200, dtype)))) == (200,) * 3
    for wrong in (256, -1):
        with pytest.raises(GenerationError, match="values from"):
            read_image(Image.fromarray(np.full((1, 1), wrong, dtype)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN))
    content = file_of(first, kind, save_all=True, append_images=[second], lossless=True)
    assert pixel(read_image(content)) == RED


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays(channels: int) -> None:
    array = np.full((5, 4, channels) if channels else (5, 4), 255, np.uint8)
    assert read_image(array).size == (4, 5)
    for wrong in (array.astype(np.float32), array[..., None, None], array[:0]):
        with pytest.raises(GenerationError, match="an array of"):
            read_image(wrong)


def test_what_is_no_picture_is_refused_in_one_way(tmp_path: Path) -> None:
    whole = file_of(Image.fromarray(photograph(64, 64)))
    jpeg = file_of(Image.fromarray(photograph(64, 64)), "JPEG")
    for damaged in (b"", b"GIF89a", b"%PDF-1.7", whole[:200], whole[:-40], jpeg[: len(jpeg) // 2], b"\0" * 1000):
        with pytest.raises(GenerationError, match=r"a picture that can't be read|pixels"):
            read_image(damaged)
    for missing in (tmp_path / "none.png", tmp_path):
        with pytest.raises(GenerationError, match=str(missing)):
            read_image(missing)
    with pytest.raises(GenerationError, match="media given as a int"):
        read_image(3)


def test_formats_that_run_programs_are_not_opened() -> None:
    with pytest.raises(GenerationError, match="can't be read"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")


def test_bytes_are_bounded(tmp_path: Path) -> None:
    content = file_of(Image.fromarray(photograph(64, 64)))
    (tmp_path / "picture.png").write_bytes(content)
    for source in (content, tmp_path / "picture.png"):
        assert read_image(source, MediaLimits(bytes=len(content))).size == (64, 64)
        with pytest.raises(GenerationError, match=f"media of {len(content)} bytes"):
            read_image(source, MediaLimits(bytes=len(content) - 1))


def test_pixels_are_bounded_before_they_are_decoded() -> None:
    content = huge_png(14000)
    assert len(content) < 30_000
    read_image(file_of(Image.new("1", (1, 1))))  # what the first picture of a process costs is not at issue
    began = time.process_time()
    with pytest.raises(GenerationError, match="pixels"):
        read_image(content)
    assert time.process_time() - began < 0.05
    with pytest.raises(GenerationError, match="a picture of 9000 x 9000 pixels"):
        read_image(huge_png(9000), MediaLimits(pixels=80_000_000))
    with pytest.raises(GenerationError, match="a picture of 30 x 20 pixels"):
        read_image(Image.new("RGB", (30, 20)), MediaLimits(pixels=599))


def test_a_refused_picture_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(huge_png(14000))
    program = (
        f"import sys\n{PEAK}\n"
        "from deltart.errors import GenerationError\n"
        "from deltart.runtime.vision.images import read_image\n"
        "before = peak()\n"
        "try: read_image(sys.argv[1])\n"
        "except GenerationError: print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "huge.png"], capture_output=True, text=True)
    assert int(run.stdout) < 100e6, run.stderr
