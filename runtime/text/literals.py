"""Objects and arrays as models write them: JSON, JSON with raw newlines in strings, or Python literals."""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

_TOKEN = re.compile(
    r"""\s+
    | (?P<string>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?P<word>[A-Za-z_]+)
    | (?P<other>[][{}:,()] | [-+.0-9eE]+)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<octal>[0-7]{1,3})|(?P<one>.))",
    re.DOTALL,
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\n": ""} | {
    quote: quote for quote in "\\'\""
}
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


def read_json(text: str) -> Any:
    """The JSON value of `text`, whose strings may hold raw control characters such as newlines.

    Raises:
        ValueError: it is none, or holds a number that is not finite.
    """
    try:
        return json.loads(text, strict=False, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_python(text: str) -> Any:
    """The value of a Python literal of dicts, lists, tuples, strings, numbers, True, False and None.

    It is rewritten as JSON token by token, so that no text can make it compute, nest without end or call.

    Raises:
        ValueError: it is none.
    """
    parts: list[str] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"no literal at {at}")
        at = found.end()
        if found["string"]:
            parts.append(_string(found["string"]))
        elif found["word"]:
            parts.append(_word(found["word"]))
        elif found["other"]:
            _append(parts, found["other"])
    return read_json(" ".join(parts))


def _append(parts: list[str], piece: str) -> None:
    piece = {"(": "[", ")": "]"}.get(piece, piece)
    if piece in "]}" and len(parts) > 1 and parts[-1] == "," and parts[-2] not in "[{,":
        parts.pop()  # Python allows a comma before the end
    parts.append(piece)


def _string(token: str) -> str:
    return json.dumps(_ESCAPE.sub(_unescaped, token[1:-1]), ensure_ascii=False)


def _unescaped(escape: re.Match[str]) -> str:
    """What Python makes of an escape in a string; one that it does not know stands for itself."""
    if escape["one"]:
        return _ESCAPED.get(escape["one"], escape[0])
    code = int(escape["octal"], 8) if escape["octal"] else int(escape["x"] or escape["u"] or escape["U"], 16)
    if code > sys.maxunicode:
        raise ValueError(f"no character: {escape[0]}")
    return chr(code)


def _word(token: str) -> str:
    if token not in _WORDS:
        raise ValueError(f"no literal: {token}")
    return _WORDS[token]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} has no JSON form")
    return value
