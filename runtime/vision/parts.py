"""Content parts of messages that are pictures or videos, in the forms of all APIs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from deltart.errors import GenerationError
from deltart.manifest import VisionEntry
from deltart.runtime.vision.images import MediaLimits
from deltart.runtime.vision.load import LoadMedium, Processing, load_medium
from deltart.runtime.vision.medium import Kind, Medium

# Types and keys by which a part is known, and where its source stands.
_KEYS: Mapping[Kind, tuple[str, ...]] = {
    "image": ("image", "image_url", "input_image"),
    "video": ("video", "video_url", "input_video"),
}


@dataclass(frozen=True)
class MediaPart:
    """A picture or video of a message.

    Attributes:
        message, part: where it stands, both from 0.
        kind: which of the two.
        source: a path, URL, bytes, PIL image, array, or frames; None where the part names none.
        fps: frames a second of given frames.
    """

    message: int
    part: int
    kind: Kind
    source: Any
    fps: float | None = None


def media_parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[MediaPart]:
    """The pictures and videos of a conversation, in order."""
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for j, part in enumerate(content if isinstance(content, (list, tuple)) else ()):
            kind = _kind(part)
            if kind is not None:
                yield MediaPart(i, j, kind, _source(part, kind), part.get("fps"))


def without_sources(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages as templates take them: of pictures and videos only that they are there."""
    shown: list[Mapping[str, Any]] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            kinds = [_kind(part) for part in content]
            parts = [part if kind is None else {"type": kind} for part, kind in zip(content, kinds, strict=True)]
            message = {**message, "content": parts}
        shown.append(message)
    return shown


def load_media(
    parts: Sequence[MediaPart], entry: VisionEntry, processing: Processing | None = None,
    limits: MediaLimits | None = None, load: LoadMedium = load_medium,
) -> list[Medium]:  # fmt: skip
    """The media of a conversation, ready for the tower; the same source twice is read once.

    Args:
        load: reads one of them.

    Raises:
        GenerationError: one can't be read; the message says which.
        MissingDependencyError: one is a video's file, and PyAV is not installed.
    """
    loaded: dict[tuple[str, Any], Medium] = {}
    media = []
    for part in parts:
        key = (part.kind, part.source if isinstance(part.source, (str, bytes)) else id(part.source))
        if key not in loaded:
            loaded[key] = _loaded(part, entry, processing, limits, load)
        media.append(loaded[key])
    return media


def data_url(url: str) -> bytes:
    """The bytes of a data URL.

    Raises:
        GenerationError: it holds none, or they are not base64.
    """
    head, comma, data = url.partition(",")
    try:
        if not comma:
            raise ValueError("no data")
        return base64.b64decode(data, validate=True) if head.endswith(";base64") else unquote_to_bytes(data)
    except (binascii.Error, ValueError) as problem:
        raise GenerationError(f"a data URL that can't be read: {problem}", "data:TYPE;base64,DATA") from problem


def _loaded(
    part: MediaPart, entry: VisionEntry, processing: Processing | None, limits: MediaLimits | None, load: LoadMedium
) -> Medium:
    try:
        return load(part.kind, _local(part.source), entry, part.fps, processing, limits)
    except GenerationError as problem:
        where = f"message {part.message + 1}, part {part.part + 1}: "
        raise GenerationError(where + problem.found, problem.expected, problem.hint) from problem


def _local(source: Any) -> Any:
    """What is here already. Nothing is fetched."""
    if source is None:
        raise GenerationError("a picture or video without a source", "a path, bytes, or a data URL")
    if not isinstance(source, str) or not _is_url(source):
        return source
    if source.startswith("data:"):
        return data_url(source)
    raise GenerationError(f"a URL: {source[:100]}", "a path, bytes, or a data URL", "fetch it first")


def _is_url(text: str) -> bool:
    return text.startswith(("data:", "http:", "https:", "file:", "ftp:"))


def _kind(part: Any) -> Kind | None:
    if isinstance(part, Mapping):
        for kind, keys in _KEYS.items():
            if part.get("type") in keys or (part.get("type") != "text" and set(keys) & set(part)):
                return kind
    return None


def _source(part: Mapping[str, Any], kind: Kind) -> Any:
    found = next((part[key] for key in _KEYS[kind] if part.get(key) is not None), None)
    return found.get("url") if isinstance(found, Mapping) else found
