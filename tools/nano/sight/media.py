"""From scenes in messages to what the family's processors make of them, through the runtime's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deltart.manifest import VisionEntry
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.load import load_image, load_video
from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.prompt import encode_prompt
from tools.nano.sight.scenes import Scene, draw
from tools.nano.sight.tasks import FPS


def parts(messages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The media parts of a conversation, in order."""
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (part for part in message["content"] if part["type"] != "text")


def pixels(part: dict[str, Any]) -> np.ndarray:
    """uint8 [height, width, 3] of a picture, or [frames, height, width, 3] of a clip."""
    if part["type"] == "image":
        return draw(Scene.from_json(part["scene"]))
    return np.stack([draw(Scene.from_json(frame)) for frame in part["frames"]])


def load(part: dict[str, Any], entry: VisionEntry) -> Medium:
    """A part as the tower takes it."""
    if part["type"] == "image":
        return load_image(pixels(part), entry)
    return load_video(pixels(part), entry, fps=FPS)


def encode(
    text: str, media: Sequence[Medium], tokenizer: Tokenizer, entry: VisionEntry
) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """Ids of a rendered conversation with the rows of its media in it, and where they lie."""
    return encode_prompt([text], media, tokenizer, entry.wrapper, entry.tokens)
