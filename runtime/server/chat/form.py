"""The form of a chat's messages, checked before a template reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.tools import is_name


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuses messages that no template could read as meant. Absent content is allowed.

    Raises:
        RequestError: names the field at fault.
    """
    if not messages:
        raise RequestError("no messages", "at least one", "send the conversation", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise _wrong(message.get("role"), "a role", f"messages[{i}].role")
        _check_content(message.get("content"), f"messages[{i}].content")
        _check_calls(message.get("tool_calls"), f"messages[{i}].tool_calls")


def _check_content(content: Any, param: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise _wrong(content, "a text or a list of parts", param)
    for j, part in enumerate(content):
        if not isinstance(part, Mapping):
            raise _wrong(part, "a part such as {type: text, text: ...}", f"{param}[{j}]")
        if part.get("type", "text") == "text" and "text" in part and not isinstance(part["text"], str):
            raise _wrong(part["text"], "a text", f"{param}[{j}].text")


def _check_calls(calls: Any, param: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise _wrong(calls, "a list of calls", param)
    for j, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not is_name(name):
            raise _wrong(name, "the name of a function", f"{param}[{j}].function.name")


def _wrong(value: Any, expected: str, param: str) -> RequestError:
    return RequestError(f"{param} = {value!r}"[:200], expected, "correct the message", param=param)
