"""The parts of a reply: reasoning, content and tool calls, from the full text or from a stream of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltart.runtime.text.calls import CallReader, Part, Written
from deltart.runtime.text.events import (
    ArgumentsDelta,
    CallDropped,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCall,
)
from deltart.runtime.text.stops import held_back
from deltart.runtime.text.tool_arguments import tool_schema

__all__ = [
    "ArgumentsDelta",
    "CallDropped",
    "CallStarted",
    "ContentDelta",
    "Event",
    "ReasoningDelta",
    "Reply",
    "ReplyParser",
    "ReplyStream",
    "ToolCall",
    "opens_thinking",
    "parse_reply",
]

_THINK, _END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class Reply:
    """A whole reply, without its tags and the newlines that belong to them."""

    reasoning: str
    content: str
    tool_calls: tuple[ToolCall, ...]


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt leaves the reply inside <think>."""
    return prompt.rstrip("\n").endswith(_THINK)


def parse_reply(text: str, tools: Sequence[Mapping[str, Any]] = (), thinking: bool = True) -> Reply:
    """The parts of a full reply; see ReplyStream for the arguments and the rules."""
    parser = ReplyParser(tools, thinking)
    events = parser.push(text) + parser.finish()
    return Reply(
        "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        "".join(event.text for event in events if isinstance(event, ContentDelta)),
        tuple(event for event in events if isinstance(event, ToolCall)),
    )


class ReplyStream:
    """Splits a stream of text into events as soon as they are certain.

    What the events add up to does not depend on how the stream is cut. Every event comes once, in the order of
    the text; a CallStarted is followed by ArgumentsDeltas and then by its ToolCall or by CallDropped.

    Reasoning ends at the first </think>. If none comes, complete calls of functions on offer that end the reply
    are calls, and the rest is reasoning. A call that is malformed or cut short stays in the content as it was
    written. Newlines next to the tags belong to the tags. See `open_call` for what counts as a call.

    Args:
        tools: schemas of the functions on offer; without any, calls are not looked for.
        thinking: the prompt ends inside <think>, see `opens_thinking`.

    Raises:
        GenerationError: a tool that is not a function schema.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = (), thinking: bool = True) -> None:
        self._schemas = dict(map(tool_schema, tools))
        self._thinking = thinking
        self._step: Callable[[str, list[Event]], None] = self._start
        self._held = ""  # may be the beginning of a tag of thinking
        self._reader = CallReader(self._schemas)
        self._text = _Trimmed(ReasoningDelta)
        self._calls: list[ToolCall] = []  # in reasoning that may turn out to be unclosed
        self._written: list[str] = []  # what they were written as

    def push(self, text: str) -> list[Event]:
        """The events that `text` completes."""
        events: list[Event] = []
        if text:
            self._step(text, events)
        return events

    def finish(self) -> list[Event]:
        """The events still held back, once no more text will come."""
        events: list[Event] = []
        if self._step == self._start:
            self._begin(self._thinking, self._held, events)
        if self._step == self._content:
            self._give_content(self._reader.finish(), events)
            events += self._text.finish()
        else:
            self._unclosed_reasoning(events)
        return events

    # One method for each state.

    def _start(self, text: str, events: list[Event]) -> None:
        text = (self._held + text).lstrip("\n")
        if _THINK.startswith(text) and text != _THINK:
            self._held = text
        elif text.startswith(_THINK):
            self._begin(True, text.removeprefix(_THINK), events)
        else:
            self._begin(self._thinking, text, events)

    def _begin(self, thinking: bool, text: str, events: list[Event]) -> None:
        self._held = ""
        self._step = self._reasoning if thinking else self._content
        self._text = _Trimmed(ReasoningDelta if thinking else ContentDelta)
        self._step(text, events)

    def _reasoning(self, text: str, events: list[Event]) -> None:
        text = self._held + text
        found = text.find(_END_THINK)
        end = found if found >= 0 else len(text) - held_back(text, (_END_THINK,))
        self._held = text[end:]
        self._give_reasoning(self._read(text[:end]), events)
        if found >= 0:
            self._give_reasoning(self._reader.finish(), events)
            self._no_calls_in_reasoning(events)
            self._reader = CallReader(self._schemas)
            self._begin(False, text[found + len(_END_THINK) :], events)

    def _content(self, text: str, events: list[Event]) -> None:
        self._give_content(self._read(text), events)

    # What they do.

    def _read(self, text: str) -> Sequence[Part]:
        return self._reader.push(text) if self._schemas else [ContentDelta(text)]

    def _give_content(self, parts: Iterable[Part], events: list[Event]) -> None:
        for part in parts:
            if isinstance(part, ContentDelta):
                events += self._text.push(part.text)
            elif not isinstance(part, Written):
                self._text.after_call = self._text.after_call or isinstance(part, ToolCall)
                events.append(part)

    def _give_reasoning(self, parts: Iterable[Part], events: list[Event]) -> None:
        """Calls are kept back as long as nothing but white space follows them."""
        for part in parts:
            if isinstance(part, ContentDelta):
                if self._calls and not part.text.strip():
                    self._written.append(part.text)
                else:
                    self._no_calls_in_reasoning(events)
                    events += self._text.push(part.text)
            elif isinstance(part, Written):
                self._written.append(part.text)
            elif isinstance(part, ToolCall):
                self._calls.append(part)

    def _no_calls_in_reasoning(self, events: list[Event]) -> None:
        events += self._text.push("".join(self._written))
        self._calls, self._written = [], []

    def _unclosed_reasoning(self, events: list[Event]) -> None:
        self._give_reasoning(self._read(self._held), events)
        self._give_reasoning(self._reader.finish(), events)
        if any(call.name not in self._schemas for call in self._calls):
            self._no_calls_in_reasoning(events)
        for call in self._calls:
            text = json.dumps(call.arguments, ensure_ascii=False)
            events += [CallStarted(call.name), ArgumentsDelta(text), call]


class ReplyParser(ReplyStream):
    """A ReplyStream of whole calls: reasoning, content and ToolCall events only."""

    def push(self, text: str) -> list[Event]:
        return _whole(super().push(text))

    def finish(self) -> list[Event]:
        return _whole(super().finish())


class _Trimmed:
    """Text without the newlines before its first and after its last line.

    Attributes:
        after_call: a call ended the text so far, so newlines at its end belong to the call's tags.
    """

    def __init__(self, delta: type[ReasoningDelta] | type[ContentDelta]) -> None:
        self._delta, self._begun, self._newlines = delta, False, 0
        self.after_call = False

    def push(self, text: str) -> list[Event]:
        body = text.rstrip("\n")
        newlines, self._newlines = self._newlines, len(text) - len(body)
        if not body:
            self._newlines = newlines + self._newlines if self._begun else 0
            return []
        body = "\n" * newlines + body if self._begun else body.lstrip("\n")
        self._begun, self.after_call = True, False
        return [self._delta(body)]

    def finish(self) -> list[Event]:
        """The newlines at the end of the reply."""
        return [self._delta("\n" * self._newlines)] if self._newlines and not self.after_call else []


def _whole(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, CallStarted | ArgumentsDelta | CallDropped)]
