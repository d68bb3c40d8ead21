"""A picture from wherever it comes, as 8-bit RGB, with bounds on what is read and decoded."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deltart.errors import GenerationError
from deltart.text_files import open_regular

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class MediaLimits:
    """Bounds on one picture or video; what is beyond them is refused before it is decoded.

    Attributes:
        bytes: of a picture's file.
        pixels: of a picture.
        seconds: that decoding a picture may take, where that is done in a process of its own.
        video_bytes: of a video's file.
        frame_pixels: of a frame of a video.
        video_frames: of a video, those included that are not looked at.
        video_seconds: that decoding one may take.
    """

    bytes: int = 100_000_000
    pixels: int = 89_478_485
    seconds: float = 30.0
    video_bytes: int = 2_000_000_000
    frame_pixels: int = 8192 * 4320
    video_frames: int = 500_000
    video_seconds: float = 600.0


def read_image(source: Any, limits: MediaLimits | None = None) -> Image.Image:
    """The picture `source` in mode RGB, as it is to be seen: turned as its EXIF entry says, on white where it is
    transparent, the first frame of an animation.

    Args:
        source: a path, the bytes of a file, a PIL image, or uint8 [height, width] or [height, width, 1, 3 or 4].

    Raises:
        GenerationError: it is no picture, damaged, too large, or of a kind whose values have no range.
    """
    limits = limits or MediaLimits()
    if isinstance(source, np.ndarray):
        return _rgb(_of_array(source))
    image = source if isinstance(source, Image.Image) else _opened(source, limits)
    if image.width * image.height > limits.pixels:
        raise _too_large(f"a picture of {image.width} x {image.height} pixels", limits)
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except GenerationError:
        raise
    except Exception as problem:  # decoders fail in as many ways as there are formats
        raise _damaged(problem) from problem


def open_media(source: Any, most: int | None = None) -> BinaryIO:
    """The file that `source` names, or whose bytes it is, open for reading.

    Raises:
        GenerationError: there is none, or it has more than `most` bytes.
    """
    if isinstance(source, (str, Path)):
        file = open_regular(Path(source), GenerationError)
        size = os.fstat(file.fileno()).st_size
    elif isinstance(source, (bytes, bytearray, memoryview)):
        file, size = io.BytesIO(source), len(source)
    else:
        raise GenerationError(
            f"media given as a {type(source).__name__}", "a path, bytes, a PIL image or an array of uint8"
        )
    if most is not None and size > most:
        file.close()
        raise GenerationError(f"media of {size} bytes", f"at most {most}", "send a smaller file")
    return file


def _opened(source: Any, limits: MediaLimits) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    with open_media(source, limits.bytes) as file:
        content = file.read()
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as problem:
        raise _too_large("a picture of more pixels than Pillow opens", limits) from problem
    except UnidentifiedImageError as problem:  # its words are an address in memory
        raise _damaged(ValueError("it is of none of the formats")) from problem
    except Exception as problem:
        raise _damaged(problem) from problem


def _of_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise GenerationError(
            f"an array of {array.dtype} {list(array.shape)}",
            "uint8 [height, width] or [height, width, channels] with 1, 3 or 4 channels",
            "scale values to 0..255 and put the channels last",
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else np.ascontiguousarray(array))


def _rgb(image: Image.Image) -> Image.Image:
    image = _eight_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits scaled down; wider numbers as they are, if they are those of 8 bits."""
    if image.mode in _SIXTEEN_BITS:
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise GenerationError(
            f"a picture of mode {image.mode} with values from {values.min()} to {values.max()}",
            "values from 0 to 255",
            "scale it to 8 bits",
        )
    return Image.fromarray(values.round().astype(np.uint8))


def _too_large(found: str, limits: MediaLimits) -> GenerationError:
    return GenerationError(found, f"at most {limits.pixels} pixels", "send a smaller picture")


def _damaged(problem: Exception) -> GenerationError:
    return GenerationError(
        f"a picture that can't be read: {str(problem)[:200] or type(problem).__name__}",
        f"a whole file of one of {', '.join(FORMATS)}",
        "check the file",
    )
