"""The picture and the video that every runner is shown: made of fixed numbers, each in a prompt of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deltart.manifest import VisionEntry
from deltart.runtime.text.tokenizer import Tokenizer
from deltart.runtime.vision.load import load_image, load_video
from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.prompt import END, PADS, START, encode_prompt

AROUND = 12  # tokens of text before and after
HEIGHT, WIDTH, FRAMES, FPS = 88, 120, 4, 2.0


@dataclass(frozen=True)
class Shown:
    """A prompt with one medium in it.

    Attributes:
        ids: int64 [T], placeholders included.
        spans: where its rows lie.
    """

    name: str
    medium: Medium
    ids: np.ndarray
    spans: tuple[Span, ...]


def shown_media(entry: VisionEntry, tokenizer: Tokenizer, ids: np.ndarray) -> list[Shown]:
    """A picture and a video, each between tokens of `ids`, int64 [n]."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 160, WIDTH)[None, None, :, None] + np.linspace(0, 60, HEIGHT)[None, :, None, None]
    frames = (slope + rng.integers(0, 36, (FRAMES, HEIGHT, WIDTH, 3))).astype(np.uint8)
    media = {"image": load_image(frames[0], entry), "video": load_video(frames, entry, FPS)}
    text = [int(token) for token in ids if token not in entry.tokens.values()]
    before, after = tuple(text[:AROUND]), tuple(text[-AROUND:])
    found = []
    for name, medium in media.items():
        pieces = (before, f"{START}{PADS[medium.kind]}{END}", after)
        tokens, spans = encode_prompt(pieces, [medium], tokenizer, entry.wrapper, entry.tokens)
        found.append(Shown(name, medium, np.array(tokens, np.int64), spans))
    return found
