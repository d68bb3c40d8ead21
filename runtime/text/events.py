"""What a reply is made of, in the order in which it becomes certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReasoningDelta:
    """The next piece of what stands inside <think>."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """The model is writing a call of `name`. A ToolCall or a CallDropped follows before the next CallStarted."""

    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """The next piece of the started call's arguments as JSON text.

    The pieces of a call that is not dropped add up to json.dumps(arguments, ensure_ascii=False).
    """

    text: str


@dataclass(frozen=True)
class CallDropped:
    """The started call is none after all: malformed or cut short. What it was written as follows as content."""


@dataclass(frozen=True)
class ToolCall:
    """A whole call that the model asks for, with arguments typed by the tool's schema."""

    name: str
    arguments: dict[str, Any]


CallProgress = CallStarted | ArgumentsDelta | CallDropped
Event = ReasoningDelta | ContentDelta | ToolCall | CallProgress
