"""Answers of /v1/messages: content blocks, and the events that build them up."""

from __future__ import annotations

from typing import Any

import msgspec

from deltart.runtime.sequence import Usage
from deltart.runtime.server.replies import CallStart, Content, Part, Reasoning, Step

Event = dict[str, Any]
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class MessageWriter:
    """Builds one message from steps, and the events that tell of it on the way.

    Args:
        key: of the message's id.
        model: the name that it carries.
    """

    def __init__(self, key: str, model: str) -> None:
        self._key, self._model = key, model
        self._blocks: list[Event] = []
        self._pieces: list[str] = []  # of the open block
        self._open: str | None = None  # its type
        self._reason: str | None = None
        self._stop: str | None = None

    def begin(self, usage: Usage) -> list[Event]:
        """The event that opens a stream."""
        return [{"type": "message_start", "message": self.body(usage)}]

    def add(self, step: Step) -> list[Event]:
        """The events of what a step adds."""
        events = [event for part in step.parts for event in self._part(part)]
        if step.end is not None:
            stopped = isinstance(step.end.stop, str)
            self._reason = "stop_sequence" if stopped else _REASONS[step.end.reason]
            self._stop = str(step.end.stop) if stopped else None
            events += self._close()
        return events

    def end(self, usage: Usage) -> list[Event]:
        """The events that close a stream."""
        delta = {"stop_reason": self._reason, "stop_sequence": self._stop}
        return [{"type": "message_delta", "delta": delta, "usage": _usage(usage)}, {"type": "message_stop"}]

    def body(self, usage: Usage) -> dict[str, Any]:
        """The message as it stands."""
        return {
            "id": f"msg_{self._key}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [dict(block) for block in self._blocks],
            "stop_reason": self._reason,
            "stop_sequence": self._stop,
            "usage": _usage(usage),
        }

    def _part(self, part: Part) -> list[Event]:
        if isinstance(part, CallStart):
            return self._begin({"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        kind = {Reasoning: "thinking", Content: "text"}.get(type(part), "tool_use")
        new = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
        events = [] if self._open == kind else self._begin(new)
        self._pieces.append(part.text)
        name, field = _DELTAS[kind]
        delta = {"type": name, field: part.text}
        return [*events, {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}]

    def _begin(self, block: Event) -> list[Event]:
        events = self._close()
        self._open, self._pieces = block["type"], []
        self._blocks.append(block)
        index = len(self._blocks) - 1
        return [*events, {"type": "content_block_start", "index": index, "content_block": dict(block)}]

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        block, text = self._blocks[-1], "".join(self._pieces)
        if self._open == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[self._open] = text
        self._open = None
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]


def _arguments(text: str) -> Any:
    """The arguments of a call; those of a call cut short are an empty object, as they are no JSON."""
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return {}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic counts cached tokens apart from the others."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
