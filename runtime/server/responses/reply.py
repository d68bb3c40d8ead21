"""Answers of /v1/responses: output items, and the events that build them up."""

from __future__ import annotations

from typing import Any

from deltart.runtime.backends.slots import TokenLogprobs
from deltart.runtime.sequence import Usage
from deltart.runtime.server.chat.reply import logprobs_body
from deltart.runtime.server.replies import CallStart, Content, Part, Reasoning, Step
from deltart.runtime.server.responses.items import carried
from deltart.runtime.text.tokenizer import Tokenizer

Event = dict[str, Any]


class ResponseWriter:
    """Builds one response from steps, and the events that tell of it on the way.

    Args:
        body: the response's fields that are known from the start, its id among them.
        tokenizer: for logprobs.
        sealed: reasoning items carry `encrypted_content`.
    """

    def __init__(self, body: dict[str, Any], tokenizer: Tokenizer, sealed: bool) -> None:
        self._body, self._tokenizer, self._sealed = body, tokenizer, sealed
        self._key = str(body["id"]).removeprefix("resp_")
        self._items: list[Event] = []
        self._pieces: list[str] = []  # of the open item's text
        self._logprobs: list[TokenLogprobs] = []  # of the open item
        self._open: str | None = None  # type of the open item
        self._count = 0
        self._reason = "stop"

    def begin(self) -> list[Event]:
        """The events that open a stream."""
        body = self.body(None, "in_progress")
        return [self._event("response.created", response=body), self._event("response.in_progress", response=body)]

    def add(self, step: Step) -> list[Event]:
        """The events of what a step adds."""
        events: list[Event] = []
        for i, part in enumerate(step.parts):
            events += self._part(part, step.logprobs if i == 0 else ())
        if step.logprobs and not step.parts and self._open == "message":
            self._logprobs += step.logprobs
        if step.end is not None:
            self._reason = step.end.reason
            events += self._close("incomplete" if self._reason == "length" else "completed")
        return events

    def end(self, usage: Usage) -> list[Event]:
        """The event that closes a stream, with the whole response."""
        status = "incomplete" if self._reason == "length" else "completed"
        return [self._event(f"response.{status}", response=self.body(usage))]

    def failed(self, message: str) -> Event:
        """The event of an error after the first byte."""
        error = {"code": "server_error", "message": message}
        return self._event("response.failed", response=self.body(None, "failed") | {"error": error})

    def body(self, usage: Usage | None, status: str | None = None) -> dict[str, Any]:
        """The response as it stands."""
        cut = self._reason == "length"
        details = {"reason": "max_output_tokens"} if cut and status is None else None
        return self._body | {
            "status": status or ("incomplete" if cut else "completed"),
            "incomplete_details": details,
            "output": list(self._items),
            "usage": None if usage is None else _usage(usage),
        }

    def _part(self, part: Part, logprobs: tuple[TokenLogprobs, ...]) -> list[Event]:
        if isinstance(part, CallStart):
            item = {"type": "function_call", "id": self._id("fc"), "call_id": part.id, "name": part.name}
            return self._begin("function_call", item | {"arguments": "", "status": "in_progress"})
        kind = {Reasoning: "reasoning", Content: "message"}.get(type(part), "function_call")
        events = [] if self._open == kind else self._begin(kind, self._new(kind))
        self._pieces.append(part.text)
        place = self._place(kind != "function_call")
        if kind == "reasoning":
            return [*events, self._event("response.reasoning_text.delta", **place, delta=part.text)]
        if kind == "function_call":
            return [*events, self._event("response.function_call_arguments.delta", **place, delta=part.text)]
        self._logprobs += logprobs
        told = self._told(logprobs)
        return [*events, self._event("response.output_text.delta", **place, delta=part.text, logprobs=told)]

    def _new(self, kind: str) -> Event:
        if kind == "reasoning":
            return {"type": "reasoning", "id": self._id("rs"), "summary": [], "content": [], "status": "in_progress"}
        return {"type": "message", "id": self._id("msg"), "role": "assistant", "status": "in_progress", "content": []}

    def _begin(self, kind: str, item: Event) -> list[Event]:
        events = self._close("completed")
        self._open, self._pieces, self._logprobs = kind, [], []
        self._items.append(item)
        events.append(self._event("response.output_item.added", output_index=len(self._items) - 1, item=dict(item)))
        if kind != "function_call":
            part = self._content_part("")
            events.append(self._event("response.content_part.added", **self._place(True), part=part))
        return events

    def _close(self, status: str) -> list[Event]:
        """The events that complete the open item."""
        if self._open is None:
            return []
        item, text, kind = self._items[-1], "".join(self._pieces), self._open
        place = self._place(kind != "function_call")
        self._open = None
        item["status"] = status
        if kind == "function_call":
            item["arguments"] = text
            done = [self._event("response.function_call_arguments.done", **place, arguments=text, name=item["name"])]
        else:
            part = self._content_part(text, kind)
            item["content"] = [part]
            name = "reasoning_text" if kind == "reasoning" else "output_text"
            more = {} if kind == "reasoning" else {"logprobs": part["logprobs"]}
            done = [self._event(f"response.{name}.done", **place, text=text, **more)]
            done.append(self._event("response.content_part.done", **place, part=part))
            if kind == "reasoning" and self._sealed:
                item["encrypted_content"] = carried(text)
        return [*done, self._event("response.output_item.done", output_index=len(self._items) - 1, item=dict(item))]

    def _content_part(self, text: str, kind: str | None = None) -> Event:
        if (kind or self._open) == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._told(self._logprobs)}

    def _told(self, logprobs: list[TokenLogprobs] | tuple[TokenLogprobs, ...]) -> list[Any]:
        body = logprobs_body(tuple(logprobs), self._tokenizer)
        return [] if body is None else list(body.content)

    def _place(self, content: bool) -> Event:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return place | ({"content_index": 0} if content else {})

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._key}{len(self._items)}"

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._count = self._count, self._count + 1
        return {"type": kind, "sequence_number": number, **fields}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
