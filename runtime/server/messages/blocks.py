"""Anthropic's content blocks as the messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltart.runtime.server.errors import RequestError

_MEDIA = {"image": "image", "document": "file", "video": "video"}


def chat_messages(
    messages: Sequence[Mapping[str, Any]], system: str | Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form: tool results become messages of their own, thinking goes with its reply.

    Raises:
        RequestError: a role or block that is unknown or malformed.
    """
    chat: list[dict[str, Any]] = []
    if system:
        chat.append({"role": "system", "content": _text(system, "system")})
    for i, message in enumerate(messages):
        role, content, param = message.get("role"), message.get("content"), f"messages[{i}]"
        blocks = _blocks(content, f"{param}.content")
        if role == "assistant":
            chat.append(_assistant(blocks, param))
        elif role in ("user", "system", "developer"):
            chat += _user(blocks, str(role), param)
        else:
            raise RequestError(f"role {role!r}"[:200], '"user" or "assistant"', "", param=f"{param}.role")
    return chat


def _user(blocks: Sequence[Mapping[str, Any]], role: str, param: str) -> list[dict[str, Any]]:
    results, parts = [], []
    for j, block in enumerate(blocks):
        kind, place = block.get("type"), f"{param}.content[{j}]"
        if kind == "tool_result":
            content = _content(_blocks(block.get("content"), f"{place}.content"), f"{place}.content")
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": content})
        else:
            parts.append(_part(block, place))
    if not parts:
        return results
    return [*results, {"role": role, "content": _joined(parts)}]


def _assistant(blocks: Sequence[Mapping[str, Any]], param: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    texts, thoughts, calls = [], [], []
    for j, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, Mapping):
                place = f"{param}.content[{j}].input"
                raise RequestError("a tool_use whose input is not an object", "an object", "", param=place)
            function = {"name": str(block.get("name", "")), "arguments": dict(arguments)}
            calls.append({"id": str(block.get("id", "")), "type": "function", "function": function})
    message["content"] = "\n".join(texts)
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _content(blocks: Sequence[Mapping[str, Any]], param: str) -> str | list[dict[str, Any]]:
    return _joined([_part(block, f"{param}[{j}]") for j, block in enumerate(blocks)])


def _part(block: Mapping[str, Any], param: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "text", "text": block["text"]}
    if kind in _MEDIA:
        return {"type": _MEDIA[str(kind)], _MEDIA[str(kind)]: _url(block.get("source"))}
    raise RequestError(f"a content block of type {kind!r}"[:200], "text, image or tool_result", "", param=param)


def _url(source: Any) -> str | None:
    """Where a block's source is to be had, its own bytes as a data URL."""
    if not isinstance(source, Mapping):
        return None
    if source.get("type") == "base64":
        return f"data:{source.get('media_type', '')};base64,{source.get('data', '')}"
    url = source.get("url")
    return url if isinstance(url, str) else None


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _blocks(content: Any, param: str) -> list[Mapping[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise RequestError("content that is neither text nor blocks", "a text or a list of blocks", "", param=param)
    return content


def _text(system: str | Sequence[Mapping[str, Any]], param: str) -> str:
    if isinstance(system, str):
        return system
    return "\n".join(str(block.get("text", "")) for block in _blocks(system, param))
