"""Server-sent events as a client reads them, and what the deltas of each API add up to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]


def events(text: str) -> list[Event]:
    """The JSON of each event, by the rules of the HTML standard; [DONE] is left out, comments are none."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        data = [line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")]
        if data and data != ["[DONE]"]:
            found.append(json.loads("\n".join(data)))
    return found


def chat_message(chunks: Iterable[Event], index: int = 0) -> Event:
    """The message and finish reason that OpenAI's clients put together from the chunks of choice `index`."""
    message: Event = {"content": "", "reasoning_content": "", "tool_calls": [], "finish_reason": None}
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", ()):
            _add_call(message["tool_calls"], call)
        message["finish_reason"] = choice["finish_reason"] or message["finish_reason"]
    return message


def _add_call(calls: list[Event], delta: Event) -> None:
    if delta["index"] == len(calls):
        calls.append({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""})
    calls[delta["index"]]["arguments"] += delta["function"].get("arguments", "")


def response_output(stream: Iterable[Event]) -> list[Event]:
    """The output items that the events of /v1/responses build up, from their deltas alone."""
    items: list[Event] = []
    for number, event in enumerate(stream):
        assert event["sequence_number"] == number
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append({**event["item"], "pieces": ""})
        elif kind.endswith(".delta"):
            items[event["output_index"]]["pieces"] += event["delta"]
    return items


def anthropic_content(stream: Iterable[Event]) -> list[Event]:
    """The content blocks that the events of /v1/messages build up."""
    blocks: list[Event] = []
    for event in stream:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "pieces": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            blocks[event["index"]]["pieces"] += next(v for k, v in delta.items() if k != "type")
    return blocks
