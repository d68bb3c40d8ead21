"""Strict reading of JSON.

RFC 8259 leaves open what repeated names, huge numbers and deep nesting mean, and Python's reader takes NaN besides.
Here each is an error that says where it is, so that a file has one meaning and no later step can stumble over it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from deltart.errors import ConfigError, DeltaRTError
from deltart.text_files import decode, read_bytes

MAX_DEPTH = 64  # nested objects and lists
MAX_DIGITS = 300  # of an integer: any such is a finite float
SHOWN = 80  # characters of a value in a message
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _RefusedError(ValueError):
    """What the parser does not take; its message goes on after "is not valid JSON: "."""


def read_json(
    path: Path, error: type[DeltaRTError] = ConfigError, hint: str = "restore it from where it came"
) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Args:
        error: what to raise.
        hint: what the user can do about a damaged file.

    Raises:
        DeltaRTError: of class `error`; the file can't be read whole (see `read_bytes`), is not strict JSON (see
            `parse_json`), or is no object.
    """
    value = parse_json(read_bytes(path, error), str(path), error, hint)
    if not isinstance(value, dict):
        raise error(f"{path} holds {kind_of(value)}", "a JSON object", hint)
    return value


def parse_json(raw: bytes | str, where: str, error: type[DeltaRTError] = ConfigError, hint: str = "correct it") -> Any:
    """The value of a JSON text; `where` names it in messages.

    Raises:
        DeltaRTError: of class `error`; it is not JSON in UTF-8, has NaN, an infinite number or an integer of more than
            MAX_DIGITS digits, repeats a name in an object, nests deeper than MAX_DEPTH, or a string has half of a
            surrogate pair.
    """
    text = decode(raw, where, error) if isinstance(raw, bytes) else raw
    try:
        value = _DECODER.decode(text)
        _check_depth(value)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as problem:
        found = f"{problem.msg}, line {problem.lineno} column {problem.colno}"
    except _RefusedError as problem:
        found = str(problem)
    except RecursionError:
        found = f"nested deeper than {MAX_DEPTH}"
    except UnicodeEncodeError:
        found = "a string has half of a surrogate pair"
    raise error(f"{where} is not valid JSON: {found}", "JSON by RFC 8259", hint)


def shown(value: Any) -> str:
    """`value` as Python writes it, short enough for a message and without characters that steer a terminal."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints, or nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def kind_of(value: Any) -> str:
    """What JSON calls a value: "a list"."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _RefusedError(f"the name {shown(name)} is there twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _RefusedError(f"an integer of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError(f"the number {text[:SHOWN]} is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise _RefusedError(f"{text} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _check_depth(value: Any) -> None:
    """Raises RecursionError where containers nest deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node) if isinstance(child, (dict, list))]
        if not level:
            return
    raise RecursionError


def _children(node: Any) -> Sequence[Any]:
    if isinstance(node, dict):
        return tuple(node.values())
    return node if isinstance(node, list) else ()
