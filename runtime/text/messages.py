"""Messages as OpenAI's clients send them, rewritten into what this family's chat templates take.

The templates know one system message, at the beginning, and the roles user, assistant and tool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltart.errors import GenerationError

# The frame of a system message that comes later: the templates refuse it, and joining it to the first one would
# change the beginning of a prompt that a prefix cache holds.
FRAME = ("<system_message>\n", "\n</system_message>")

_ROLES = {"developer": "system", "function": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def normalized(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """The same conversation in the family's own terms.

    - `developer` is `system`, and `function` is `tool`.
    - Null fields are left out; a message without content has an empty one.
    - System messages at the beginning become one, with a blank line between them; a later one becomes a user
      message in a marked frame.
    - Text parts by the names of other APIs become text parts; other parts stay as they are.
    - `function_call`, the older form of `tool_calls`, becomes one.

    Args:
        messages: mappings with `role` and what else the client sent, oldest first. They are left as they are.

    Raises:
        GenerationError: what is no list of mappings with a role, or parts that are none.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise _refusal(f"messages that are a {type(messages).__name__}", "a list of messages")
    made = [_message(message, number) for number, message in enumerate(messages, start=1)]
    leading = next((index for index, message in enumerate(made) if message["role"] != "system"), len(made))
    system = [_joined(made[:leading])] if leading else []
    return system + [_framed(message) if message["role"] == "system" else message for message in made[leading:]]


def _message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise _refusal(f"message {number}, a {type(message).__name__}", "a mapping with role and content")
    made = {name: value for name, value in message.items() if value is not None}
    role = made.get("role")
    if not isinstance(role, str):
        raise _refusal(f"message {number} with role {role!r}", "a role such as 'user'")
    made["role"] = _ROLES.get(role, role)
    made["content"] = _content(made.get("content", ""), number)
    call = made.pop("function_call", None)
    if call is not None and "tool_calls" not in made:
        made["tool_calls"] = [{"type": "function", "function": call}]
    return made


def _content(content: Any, number: int) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise _refusal(f"message {number} with content of type {type(content).__name__}", "a text or a list of parts")
    return [_part(part, number) for part in content]


def _part(part: Any, number: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise _refusal(f"message {number} with a part that is a {type(part).__name__}", "a mapping with a type")
    kind = part.get("type")
    if kind not in _TEXT_PARTS:
        return dict(part)
    text = part.get("text", part.get("refusal"))
    if not isinstance(text, str):
        raise _refusal(f"message {number} with a part of type {kind!r} and text {text!r}", "a text")
    return {"type": "text", "text": text}


def _joined(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One system message of several."""
    contents = [message["content"] for message in messages if message["content"]]
    if all(isinstance(content, str) for content in contents):
        return {"role": "system", "content": "\n\n".join(contents)}
    parts: list[dict[str, Any]] = []
    for content in contents:
        parts += [{"type": "text", "text": "\n\n"}] if parts else []
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": "system", "content": parts}


def _framed(message: Mapping[str, Any]) -> dict[str, Any]:
    before, after = FRAME
    content = message["content"]
    if isinstance(content, str):
        return {"role": "user", "content": f"{before}{content}{after}"}
    return {"role": "user", "content": [{"type": "text", "text": before}, *content, {"type": "text", "text": after}]}


def _refusal(found: str, expected: str) -> GenerationError:
    return GenerationError(found, expected, "send messages as in OpenAI's chat completions")
