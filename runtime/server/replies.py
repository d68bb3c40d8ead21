"""What a reply consists of while it comes: reasoning, content, tool calls, logprobs, its end."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Literal

from deltart.runtime.backends.slots import TokenLogprobs
from deltart.runtime.sequence import Delta
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.prepare import Prepared
from deltart.runtime.text.reply import (
    ArgumentsDelta,
    CallDropped,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    ReplyStream,
    ToolCall,
)

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Reasoning:
    """The next piece of what the model thinks."""

    text: str


@dataclass(frozen=True)
class Content:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool call begins: the call's place among those of its reply, its id, and the function."""

    call: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of the JSON text of a call's arguments."""

    call: int
    text: str


@dataclass(frozen=True)
class End:
    """A reply is complete. `stop` is the stop string or token that ended it, if one did."""

    reason: Reason
    stop: str | int | None = None


Part = Reasoning | Content | CallStart | CallArguments


@dataclass(frozen=True)
class Step:
    """What one step of the engine added to reply `index`."""

    index: int
    parts: tuple[Part, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    tokens: int = 0
    end: End | None = None


class ReplyReader:
    """Reads the deltas of one reply.

    Args:
        index: which of the request's replies.
        plan: how it is to be read: a conversation's reply has reasoning and calls, any other is all content.
    """

    def __init__(self, index: int, plan: Prepared) -> None:
        self._index, self._one_call = index, plan.one_call
        self._stop_ids = frozenset(plan.request.params.stop_token_ids)
        self._parser = None if plan.prompt is None else ReplyStream(plan.tools, plan.prompt.thinking)
        self._begun = self._complete = 0  # calls
        self.ended = False

    @property
    def cut(self) -> bool:
        """The reply has ended before the engine's, which may be cancelled."""
        return self.ended and self._one_call

    def read(self, delta: Delta) -> Step:
        """The step that `delta` makes.

        Raises:
            RequestError: the reply was cut by the server or by its deadline.
        """
        if self.ended:
            return Step(self._index)
        last = delta.finish_reason is not None
        parts = self._parts(delta.text, last)
        end = None
        if self._one_call and self._complete:
            end = End("tool_calls")
        elif last and delta.finish_reason != "error":  # which the handle raises next
            told = isinstance(delta.stop, str) or delta.stop in self._stop_ids
            end = End(self._reason(delta), delta.stop if told else None)
        self.ended = end is not None
        return Step(self._index, tuple(parts), delta.logprobs, len(delta.tokens), end)

    def _reason(self, delta: Delta) -> Reason:
        if delta.finish_reason == "timeout":
            raise RequestError("a request that took too long", "an answer in time", "ask for less", status=504)
        if delta.finish_reason == "cancelled":
            raise RequestError("a reply that was cut", "", "the server is shutting down: try another", status=503)
        if delta.finish_reason == "length":
            return "length"
        return "tool_calls" if self._complete else "stop"

    def _parts(self, text: str, last: bool) -> list[Part]:
        if self._parser is None:
            return [Content(text)] if text else []
        events = self._parser.push(text)
        parts = [part for event in events if (part := self._part(event)) is not None]
        for event in self._parser.finish() if last else ():
            if _begins_call(event):
                break  # the markup of a call cut short is no content
            part = self._part(event)
            parts += [] if part is None else [part]
        return parts

    def _part(self, event: Event) -> Part | None:
        """The part that an event adds. A call that proves malformed is left unfinished: it can't be taken back."""
        if self._one_call and self._complete:
            return None
        if isinstance(event, ReasoningDelta):
            return Reasoning(event.text)
        if isinstance(event, ContentDelta):
            return Content(event.text)
        if isinstance(event, CallStarted):
            self._begun += 1
            return CallStart(self._begun - 1, call_id(), event.name)
        if isinstance(event, ArgumentsDelta):
            return CallArguments(self._begun - 1, event.text)
        self._complete += isinstance(event, ToolCall)
        return None


def _begins_call(event: Event) -> bool:
    """Whether what is left at the end of a reply is a call that is not whole; it may have been given as started."""
    markup = isinstance(event, ContentDelta) and event.text.lstrip().startswith(("<tool_call>", "<function="))
    return markup or isinstance(event, CallDropped)


def call_id() -> str:
    """A fresh id of a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"
