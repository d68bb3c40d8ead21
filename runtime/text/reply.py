"""The parts of a reply: reasoning, content and tool calls, from the full text or from a stream of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from deltart.errors import GenerationError
from deltart.runtime.text.stops import held_back
from deltart.runtime.text.tool_arguments import Schema, coerce

_THINK, _END_THINK = "<think>", "</think>"
_CALL, _END_CALL = "<tool_call>", "</tool_call>"

_HEAD = re.compile(r"<tool_call>\s*<function=([^>\n]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>")
_TAIL = re.compile(r"</function>\s*</tool_call>")
# A value may itself hold the closing tag: it ends where another parameter or the end of the call follows.
_END_VALUE = re.compile(r"</parameter>\s*(?=<parameter=|</function>\s*</tool_call>)")


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for, with arguments typed by the tool's schema."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ReasoningDelta:
    """The next piece of what stands inside <think>."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """The next piece of the answer."""

    text: str


Event = ReasoningDelta | ContentDelta | ToolCall


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
    """The parts of a full reply; see ReplyParser for the arguments and the rules."""
    parser = ReplyParser(tools, thinking)
    events = parser.push(text) + parser.finish()
    return Reply(
        "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        "".join(event.text for event in events if isinstance(event, ContentDelta)),
        tuple(event for event in events if isinstance(event, ToolCall)),
    )


class _State(Enum):
    START = auto()
    REASONING = auto()
    CONTENT = auto()
    CALL = auto()


class ReplyParser:
    """Splits a stream of text into events, whose texts and calls do not depend on how the stream is cut.

    Reasoning ends at the first </think>, and is all there is if none comes. A tool call is taken out of the
    content when it is complete; one that is malformed or cut short stays in the content as it was written.
    Newlines next to the tags belong to the tags.

    Args:
        tools: schemas of the functions on offer; without any, calls are not looked for.
        thinking: the prompt ends inside <think>, see `opens_thinking`.

    Raises:
        GenerationError: a tool that is not a function schema.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = (), thinking: bool = True) -> None:
        self._schemas = dict(_schema(tool) for tool in tools)
        self._thinking = thinking
        self._steps = {
            _State.START: self._start,
            _State.REASONING: self._reasoning,
            _State.CONTENT: self._content,
            _State.CALL: self._call,
        }
        self._state = _State.START
        self._text = ""  # received and not yet given out
        self._searched = 0  # CALL: the next closing tag is not before this position of _text
        self._newlines = ""  # held until it is known what follows them
        self._begun = False  # some text of this part has been given out
        self._call_last = False

    def push(self, text: str) -> list[Event]:
        """The events that `text` completes."""
        self._text += text
        return self._drain()

    def finish(self) -> list[Event]:
        """The events still held back, once no more text will come."""
        events: list[Event] = []
        if self._state is _State.START:
            self._state = _State.REASONING if self._thinking else _State.CONTENT
            events += self._drain()
        while self._state is _State.CALL:
            self._give_up_call(events)
            events += self._drain()
        self._give(events, self._text)
        if self._state is _State.CONTENT and self._newlines and not self._call_last:
            events.append(ContentDelta(self._newlines))
        self._text = self._newlines = ""
        return events

    def _drain(self) -> list[Event]:
        events: list[Event] = []
        while self._steps[self._state](events):
            pass
        return events

    # Each step gives out what it can and says whether another step may follow.

    def _start(self, events: list[Event]) -> bool:
        text = self._text.lstrip("\n")
        if _THINK.startswith(text) and text != _THINK:
            return False
        if text.startswith(_THINK):
            self._text = text[len(_THINK) :]
        thinking = self._thinking or text.startswith(_THINK)
        self._state = _State.REASONING if thinking else _State.CONTENT
        return True

    def _reasoning(self, events: list[Event]) -> bool:
        if not self._give_until(events, _END_THINK):
            return False
        self._text = self._text[len(_END_THINK) :]
        self._newlines, self._begun = "", False
        self._state = _State.CONTENT
        return True

    def _content(self, events: list[Event]) -> bool:
        if not self._schemas:
            self._give(events, self._text)
            self._text = ""
            return False
        if not self._give_until(events, _CALL):
            return False
        self._state, self._searched = _State.CALL, 0
        return True

    def _call(self, events: list[Event]) -> bool:
        found = self._text.find(_END_CALL, self._searched)
        if found < 0:
            self._searched = max(0, len(self._text) - len(_END_CALL) + 1)
            return False
        end = found + len(_END_CALL)
        call = _read_call(self._text[:end], self._schemas)
        if isinstance(call, ToolCall):
            events.append(call)
            self._text, self._call_last = self._text[end:], True
            self._state = _State.CONTENT
        elif call is _Unread.OPEN:
            self._searched = end
        else:
            self._give_up_call(events)
        return True

    def _give_up_call(self, events: list[Event]) -> None:
        self._give(events, _CALL)
        self._text = self._text[len(_CALL) :]
        self._state = _State.CONTENT

    def _give_until(self, events: list[Event], tag: str) -> bool:
        """Gives out the text before `tag`, or, if it is not there, what can't be the beginning of it."""
        found = self._text.find(tag)
        end = found if found >= 0 else len(self._text) - held_back(self._text, (tag,))
        self._give(events, self._text[:end])
        self._text = self._text[end:]
        return found >= 0

    def _give(self, events: list[Event], text: str) -> None:
        text = self._newlines + text
        body = text.rstrip("\n")
        self._newlines = text[len(body) :] if body or self._begun else ""
        if not body:
            return
        delta = ReasoningDelta if self._state is _State.REASONING else ContentDelta
        events.append(delta(body if self._begun else body.lstrip("\n")))
        self._begun, self._call_last = True, False


class _Unread(Enum):
    OPEN = auto()  # the closing tag stands inside a value that goes on
    MALFORMED = auto()


def _read_call(block: str, schemas: Mapping[str, Schema]) -> ToolCall | _Unread:
    """The call in a text that begins with <tool_call> and ends with </tool_call>."""
    head = _HEAD.match(block)
    if head is None:
        return _Unread.MALFORMED
    closed = block[: -len(_END_CALL)].rstrip().endswith("</function>")
    schema, at = schemas.get(head[1], {}), head.end()
    arguments: dict[str, Any] = {}
    while parameter := _PARAMETER.match(block, at):
        end = _END_VALUE.search(block, parameter.end())
        if end is None:
            return _Unread.MALFORMED if closed else _Unread.OPEN
        value = block[parameter.end() : end.start()].removeprefix("\n").removesuffix("\n")
        arguments[parameter[1]] = coerce(value, parameter[1], schema)
        at = end.end()
    return ToolCall(head[1], arguments) if _TAIL.fullmatch(block, at) else _Unread.MALFORMED


def _schema(tool: Mapping[str, Any]) -> tuple[str, Schema]:
    """Name and parameters of a tool, given bare or as {type: function, function: ...}."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not isinstance(parameters, Mapping | None):
        raise GenerationError(
            f"a tool that is not a function schema: {tool!r}",
            "a mapping with a name and parameters that are a JSON schema",
            "correct the tool",
        )
    return name, parameters or {}
