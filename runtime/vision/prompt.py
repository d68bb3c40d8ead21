"""Placeholders of a rendered conversation: found where the template put them, never where a user typed them.

A template writes one placeholder for each picture or video. A user's text can hold the same characters, and the
tokenizer would make the same token of them, so they are set apart before the template sees the text and encoded as
what they are: characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deltart.errors import GenerationError
from deltart.runtime.vision.medium import Kind, Medium, Span

START, END = "<|vision_start|>", "<|vision_end|>"
PADS: Mapping[Kind, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
KEPT, REPLACED = "kept", "replaced"  # VisionEntry.wrapper


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of text, with special tokens recognised in it."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text, with none."""


@dataclass(frozen=True)
class Typed:
    """Characters of a user's text that spell a placeholder."""

    text: str


@dataclass(frozen=True)
class Rows:
    """Where the rows of a temporal patch of a medium go."""

    medium: Medium
    frame: int


class Escape:
    """Sets placeholders that users typed apart from those of the template.

    Args:
        values: all that a template is given: messages, tools, options.
    """

    def __init__(self, *values: Any) -> None:
        texts = list(_texts(values))
        self._needed = any(pad in text for text in texts for pad in PADS.values())
        number = 0
        while any(_mark(number) in text for text in texts):
            number += 1
        self._marks = {pad: f"{_mark(number)}{kind}|" for kind, pad in PADS.items()}
        self._kinds = {f"{_mark(number)}{kind}|": pad for kind, pad in PADS.items()}

    def hide(self, value: Any) -> Any:
        """`value` with a mark in the place of every placeholder in its texts."""
        return _mapped(value, self._hidden) if self._needed else value

    def split(self, text: str) -> Iterator[str | Typed]:
        """The rendered text, and what users typed in it."""
        for piece in re.split("(" + "|".join(map(re.escape, self._kinds)) + ")", text):
            if piece:
                yield Typed(self._kinds[piece]) if piece in self._kinds else piece

    def _hidden(self, text: str) -> str:
        for pad, mark in self._marks.items():
            text = text.replace(pad, mark)
        return text


def encode_prompt(
    pieces: Iterable[str | Typed | tuple[int, ...]], media: Sequence[Medium], encoder: Encoder, wrapper: str,
    tokens: Mapping[str, int],
) -> tuple[tuple[int, ...], tuple[Span, ...]]:  # fmt: skip
    """Ids of a rendered conversation with the rows of its media in the place of their placeholders, and where they lie.

    Args:
        pieces: rendered text, characters that users typed, and ids that are known already.
        media: pictures and videos, each kind in the order of its placeholders.
        wrapper: what stands around a video's frames, as VisionEntry says.
        tokens: ids of the placeholders, "image_pad" and "video_pad", as VisionEntry has them.

    Raises:
        GenerationError: more or fewer media than placeholders.
    """
    ids, spans = list[int](), list[Span]()
    for item in _joined(_expanded(pieces, media, wrapper)):
        if isinstance(item, Rows):
            spans.append(Span(len(ids), item.medium, item.frame))
            ids += [tokens[f"{item.medium.kind}_pad"]] * item.medium.frame_tokens
        elif isinstance(item, Typed):
            ids += encoder.encode_plain(item.text)
        else:
            ids += encoder.encode(item) if isinstance(item, str) else item
    return tuple(ids), tuple(spans)


def described(spans: Sequence[Span]) -> str:
    """The tokens that each medium of a prompt takes, for messages: "image 1: 64 tokens, video 1: 300 tokens"."""
    media = list(dict.fromkeys(span.medium for span in spans))
    found = []
    for kind in PADS:
        of_kind = [medium for medium in media if medium.kind == kind]
        found += [f"{kind} {number}: {medium.tokens} tokens" for number, medium in enumerate(of_kind, start=1)]
    return ", ".join(found)


def _expanded(
    pieces: Iterable[str | Typed | tuple[int, ...]], media: Sequence[Medium], wrapper: str
) -> Iterator[str | Typed | tuple[int, ...] | Rows]:
    left = {kind: [medium for medium in media if medium.kind == kind] for kind in PADS}
    given, found = {kind: len(of_kind) for kind, of_kind in left.items()}, dict.fromkeys(PADS, 0)
    video = f"{START}{PADS['video']}{END}" if wrapper == REPLACED else PADS["video"]
    kinds: Mapping[str, Kind] = {PADS["image"]: "image", video: "video"}
    for piece in pieces:
        if not isinstance(piece, str):
            yield piece
            continue
        for part in re.split("(" + "|".join(map(re.escape, kinds)) + ")", piece):
            kind = kinds.get(part)
            if kind is None:
                yield part
                continue
            found[kind] += 1
            if left[kind]:
                yield from _rows(left[kind].pop(0))
    for kind in PADS:
        if given[kind] != found[kind]:
            raise GenerationError(
                f"{given[kind]} {kind}s for {found[kind]} placeholders of the chat template",
                "as many of one as of the other",
                "put media into messages of users or tools",
            )


def _rows(medium: Medium) -> Iterator[str | Rows]:
    if medium.kind == "image":
        yield Rows(medium, 0)
        return
    for frame, seconds in enumerate(medium.times):
        yield f"<{seconds:.1f} seconds>{START}"
        yield Rows(medium, frame)
        yield END


def _joined(items: Iterable[str | Typed | tuple[int, ...] | Rows]) -> Iterator[str | Typed | tuple[int, ...] | Rows]:
    """Texts side by side as one, so that they are encoded as one."""
    text = ""
    for item in items:
        if isinstance(item, str):
            text += item
            continue
        if text:
            yield text
        text = ""
        yield item
    if text:
        yield text


def _mark(number: int) -> str:
    return f"|typed-{number}-"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.items() for text in _texts(item))
    elif isinstance(value, (list, tuple)):
        yield from (text for item in value for text in _texts(item))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return value
