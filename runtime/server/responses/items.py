"""Input items of /v1/responses as the messages of a chat."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from deltart.runtime.server.errors import RequestError

_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "text"}
_MARK = "deltart:"  # of reasoning that a client carries for us in encrypted_content


def messages_of(items: str | Sequence[Mapping[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The conversation that `input` and `instructions` describe.

    Neighbouring reasoning, message and function_call items of the assistant become one message. Items of hosted
    tools are left out.

    Raises:
        RequestError: an item that is malformed, or that refers to something stored.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    for i, item in enumerate(items):
        _add(messages, item, f"input[{i}]")
    if not any(message["role"] != "system" for message in messages) and not items:
        raise RequestError("no input", "a text or at least one item", "send the conversation", param="input")
    return messages


def carried(reasoning: str) -> str:
    """Reasoning as `encrypted_content`: opaque to clients, which send it back with the next request."""
    return _MARK + base64.b64encode(reasoning.encode()).decode()


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], param: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _message(messages, item, param)
    elif kind == "function_call":
        call = {"name": _text(item, "name", param), "arguments": _text(item, "arguments", param)}
        calls = _assistant(messages).setdefault("tool_calls", [])
        calls.append({"id": str(item.get("call_id", "")), "type": "function", "function": call})
    elif kind == "function_call_output":
        content = _content(item.get("output"), f"{param}.output")
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": content})
    elif kind == "reasoning":
        _assistant(messages)["reasoning_content"] = _reasoning(item)
    elif kind == "item_reference":
        raise RequestError(
            "an item_reference", "the item itself", "this server stores nothing: send the whole item", param=param
        )


def _message(messages: list[dict[str, Any]], item: Mapping[str, Any], param: str) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        expected = '"user", "assistant", "system" or "developer"'
        raise RequestError(f"role {role!r}"[:200], expected, "", param=f"{param}.role")
    content = _content(item.get("content"), f"{param}.content")
    if role != "assistant":
        messages.append({"role": role, "content": content})
        return
    assistant = _assistant(messages)
    before = assistant.get("content")
    assistant["content"] = content if not before else f"{before}\n{content}"


def _assistant(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that the next item belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _content(content: Any, param: str) -> str | list[dict[str, Any]]:
    """Content as text; with images and the like as a list of parts, which are judged where messages are rendered."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise RequestError("content that is neither text nor parts", "a text or a list of parts", "", param=param)
    parts = [
        {"type": "text", "text": str(part.get("text", part.get("refusal", "")))}
        if part.get("type") in _PARTS
        else dict(part)
        for part in content
    ]
    if all(part.get("type") == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _reasoning(item: Mapping[str, Any]) -> str:
    for field in ("content", "summary"):
        parts = item.get(field)
        texts = (
            [str(part.get("text", "")) for part in parts or () if isinstance(part, Mapping)]
            if isinstance(parts, list)
            else []
        )
        if any(texts):
            return "\n".join(texts)
    sealed = item.get("encrypted_content")
    if isinstance(sealed, str) and sealed.startswith(_MARK):
        try:
            return base64.b64decode(sealed.removeprefix(_MARK), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _text(item: Mapping[str, Any], field: str, param: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise RequestError(f"{field} = {value!r}"[:200], "a text", "", param=f"{param}.{field}")
    return value
