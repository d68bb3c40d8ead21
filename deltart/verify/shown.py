"""The picture and the video that every runner is shown: made of fixed numbers, each in a prompt of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deltart.manifest import VisionEntry
from deltart.runtime.vision.load import load_image, load_video
from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.prompt import END, PADS, START, Encoder, encode_prompt

AROUND = 12  # tokens of text before and after
HEIGHT, WIDTH, FRAMES, FPS = 88, 120, 4, 2.0
MEDIA = ("image", "video")  # what `Shown.name` may be


@dataclass(frozen=True)
class Shown:
    """A prompt with one medium in it.

    Attributes:
        name: one of MEDIA.
        ids: int64 [T], placeholders included.
        spans: where its rows lie.
    """

    name: str
    medium: Medium
    ids: np.ndarray
    spans: tuple[Span, ...]

    def __str__(self) -> str:
        frames = f" of {len(self.medium.frames)} frames" if self.medium.kind == "video" else ""
        return f"{self.name}{frames}: {self.medium.tokens} of {len(self.ids)} tokens"


class Marks:
    """What stands in for the tokenizer of an artifact without one: it knows the two tokens around a picture."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._ids = {START: tokens["vision_start"], END: tokens["vision_end"]}

    def encode(self, text: str) -> list[int]:
        """See Encoder."""
        return [self._ids[mark] for mark in re.findall("|".join(map(re.escape, self._ids)), text)]

    def encode_plain(self, text: str) -> list[int]:
        """See Encoder."""
        return []


def shown_media(entry: VisionEntry, encoder: Encoder, ids: np.ndarray) -> list[Shown]:
    """A picture and a video, each between tokens of `ids`, int64 [n]."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 160, WIDTH)[None, None, :, None] + np.linspace(0, 60, HEIGHT)[None, :, None, None]
    frames = (slope + rng.integers(0, 36, (FRAMES, HEIGHT, WIDTH, 3))).astype(np.uint8)
    media = dict(zip(MEDIA, (load_image(frames[0], entry), load_video(frames, entry, FPS)), strict=True))
    text = [int(token) for token in ids if token not in entry.tokens.values()]
    before, after = tuple(text[:AROUND]), tuple(text[-AROUND:])
    found = []
    for name, medium in media.items():
        pieces = (before, f"{START}{PADS[medium.kind]}{END}", after)
        tokens, spans = encode_prompt(pieces, [medium], encoder, entry.wrapper, entry.tokens)
        found.append(Shown(name, medium, np.array(tokens, np.int64), spans))
    return found
