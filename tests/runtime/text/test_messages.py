"""What real clients send, and what becomes of it: the family's template renders all of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from deltart.errors import GenerationError
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.messages import FRAME, normalized

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
CAPTURES = Path(__file__).resolve().parents[4] / "shared" / "client-captures"
CLIENTS = sorted(path for path in CAPTURES.glob("*.json") if path.stem != "suite_schemathesis")  # random messages
TEMPLATE = ChatTemplate.from_folder(NANO)


def _message(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _text(text: str, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": text}


USER = _message("user", "hi")
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# What a client sends, and what it would have sent, had it known the template.
REWRITTEN: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "developer": ([_message("developer", "be brief"), USER], [_message("system", "be brief"), USER]),
    "two leading systems": (
        [_message("system", "a"), _message("system", "b"), USER],
        [_message("system", "a\n\nb"), USER],
    ),
    "system and developer": (
        [_message("system", "a"), _message("developer", "b"), USER],
        [_message("system", "a\n\nb"), USER],
    ),
    "an empty leading system": (
        [_message("system", ""), _message("system", "b"), USER],
        [_message("system", "b"), USER],
    ),
    "leading systems of parts": (
        [_message("system", [_text("a")]), _message("system", "b"), USER],
        [_message("system", "a\n\nb"), USER],
    ),
    "a later system": (
        [USER, _message("assistant", "yo"), _message("system", "retry"), USER],
        [USER, _message("assistant", "yo"), _message("user", f"{FRAME[0]}retry{FRAME[1]}"), USER],
    ),
    "a later developer of parts": (
        [USER, _message("assistant", "yo"), _message("developer", [_text("retry")]), USER],
        [USER, _message("assistant", "yo"), _message("user", f"{FRAME[0]}retry{FRAME[1]}"), USER],
    ),
    "assistant without content": (
        [USER, {"role": "assistant", "tool_calls": [CALL]}, _message("tool", "1")],
        [USER, _message("assistant", "", tool_calls=[CALL]), _message("tool", "1")],
    ),
    "assistant with null content": (
        [USER, _message("assistant", None, tool_calls=[CALL], refusal=None, audio=None), _message("tool", "1")],
        [USER, _message("assistant", "", tool_calls=[CALL]), _message("tool", "1")],
    ),
    "null tool calls": (
        [USER, _message("assistant", "yo", tool_calls=None), USER],
        [USER, _message("assistant", "yo"), USER],
    ),
    "a function call of the older form": (
        [USER, _message("assistant", None, function_call=CALL["function"]), _message("function", "1", name="f")],
        [USER, _message("assistant", "", tool_calls=[CALL]), _message("tool", "1")],
    ),
    "a tool result without its id": (
        [
            USER,
            _message("assistant", "", tool_calls=[CALL]),
            _message("tool", "1", name="f", extra={"function_id": "1"}),
        ],
        [USER, _message("assistant", "", tool_calls=[CALL]), _message("tool", "1")],
    ),
    "a tool result of parts": (
        [USER, _message("assistant", "", tool_calls=[CALL]), _message("tool", [_text("1"), _text("2")])],
        [USER, _message("assistant", "", tool_calls=[CALL]), _message("tool", "12")],
    ),
    "parts of the responses API": (
        [_message("user", [_text("hi", "input_text")]), _message("assistant", [_text("yo", "output_text")]), USER],
        [USER, _message("assistant", "yo"), USER],
    ),
    "a refusal": (
        [USER, _message("assistant", [{"type": "refusal", "refusal": "no"}]), USER],
        [USER, _message("assistant", "no"), USER],
    ),
    "a text among the parts": ([_message("user", ["h", _text("i")])], [USER]),
    "user twice": ([USER, USER], [USER, USER]),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_clients_messages_render_like_the_templates_own(name: str) -> None:
    sent, own = REWRITTEN[name]
    before = copy.deepcopy(sent)
    assert TEMPLATE.render(normalized(sent)) == TEMPLATE.render(own)
    assert sent == before


def test_messages_that_need_nothing_stay_as_they_are() -> None:
    messages = [
        _message("system", "a"),
        _message("user", [_text("b"), {"type": "image_url", "image_url": {"url": "data:"}}]),
        _message("assistant", "c", reasoning_content="d", tool_calls=[CALL]),
        _message("tool", "e", tool_call_id="1"),
    ]
    assert normalized(messages) == messages


@pytest.mark.parametrize(
    "messages",
    [
        "hi",
        None,
        {"role": "user"},
        ["hi"],
        [None],
        [{"content": "hi"}],
        [{"role": None, "content": "hi"}],
        [{"role": 3, "content": "hi"}],
        [_message("user", 3)],
        [_message("user", {"a": 1})],
        [_message("user", [3])],
        [_message("user", [{"type": "text", "text": None}])],
        [_message("user", [{"type": "text"}])],
    ],
)
def test_what_is_no_message_is_refused(messages: Any) -> None:
    with pytest.raises(GenerationError) as caught:
        normalized(messages)
    assert caught.value.expected
    assert caught.value.hint


@pytest.mark.parametrize("path", CLIENTS or [None], ids=lambda path: path and path.stem)
def test_captured_requests_render(path: Path | None, qwen_folder: Path) -> None:
    """Every request of every client, images included: the vendor's template refuses none of them."""
    if path is None:
        pytest.skip(f"no captured requests at {CAPTURES}")
    template = ChatTemplate.from_folder(qwen_folder)
    for request in json.loads(path.read_text())["requests"]:
        body = request.get("body")
        if isinstance(body, dict) and request["path"].endswith("/chat/completions"):
            tools = [tool for tool in body.get("tools") or () if isinstance(tool, dict)]
            assert template.render(normalized(body["messages"]), tools or None)
