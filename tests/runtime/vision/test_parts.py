"""Content parts of all APIs, and where their pictures may come from."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deltart.errors import GenerationError
from deltart.runtime.vision.parts import load_media, media_parts, without_sources
from support.vision import ENTRY, photograph

PIXELS = photograph(60, 80)


def png() -> bytes:
    target = io.BytesIO()
    Image.fromarray(PIXELS).save(target, "PNG")
    return target.getvalue()


DATA = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": PIXELS},
        {"type": "image", "image": Image.fromarray(PIXELS)},
        {"type": "image", "image": png()},
        {"image": DATA},
        {"type": "image_url", "image_url": {"url": DATA, "detail": "high"}},
        {"type": "image_url", "image_url": DATA},
        {"type": "input_image", "image_url": DATA},
    ],
)
def test_one_picture_in_every_form(part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "text"}, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    (found,) = media_parts(messages)
    assert (found.message, found.part, found.kind) == (1, 1, "image")
    (medium,) = load_media([found], ENTRY)
    assert medium.digest == load_media(list(media_parts([{"content": [{"image": PIXELS}]}])), ENTRY)[0].digest
    assert without_sources(messages)[1]["content"] == [{"type": "text", "text": "a"}, {"type": "image"}]
    assert messages[1]["content"][1] is part  # nothing was changed


def test_videos_by_path_and_by_frames(tmp_path: Path) -> None:
    frames = np.stack([PIXELS] * 4)
    parts = list(media_parts([{"content": [{"type": "video", "video": frames, "fps": 4}, {"type": "video_url"}]}]))
    assert [(part.kind, part.fps) for part in parts] == [("video", 4), ("video", None)]
    (medium,) = load_media(parts[:1], ENTRY)
    assert medium.kind == "video"
    with pytest.raises(GenerationError, match="message 1, part 2: a picture or video without a source"):
        load_media(parts, ENTRY)


def test_texts_about_pictures_are_texts() -> None:
    assert not list(media_parts([{"content": [{"type": "text", "text": "image", "image": None}, "image"]}]))
    assert not list(media_parts([{"content": "image"}, {"role": "user"}]))


def test_one_source_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    parts = list(media_parts([{"content": [{"image": str(tmp_path / "a.png")}] * 3}]))
    first, *others = load_media(parts, ENTRY)
    assert all(other is first for other in others)


@pytest.mark.parametrize("url", ["http://example.com/a.png", "https://127.0.0.1/", "file:///etc/passwd", "ftp://a/b"])
def test_nothing_is_fetched(url: str) -> None:
    with pytest.raises(GenerationError, match="message 1, part 1: a URL"):
        load_media(list(media_parts([{"content": [{"type": "image_url", "image_url": {"url": url}}]}])), ENTRY)


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,*", "data:,abc"])
def test_data_urls_that_hold_no_picture(url: str) -> None:
    with pytest.raises(GenerationError, match=r"message 1, part 1: a (data URL|picture) that can't be read"):
        load_media(list(media_parts([{"content": [{"image": url}]}])), ENTRY)
