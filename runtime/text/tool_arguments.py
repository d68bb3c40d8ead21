"""Values of tool arguments: the text that the model wrote, read by the type in the tool's schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from deltart.errors import GenerationError

Schema = Mapping[str, Any]

_WORDS = {"true": True, "false": False, "null": None, "none": None}
_KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}


def coerce(text: str, name: str, parameters: Schema) -> Any:
    """The value of argument `name`.

    Text stays as it is where the schema declares a string or nothing, and where it can't be read as any of
    the declared types: the caller's own validation then sees the model's own words.

    Args:
        text: what stands between the parameter tags.
        name: the parameter.
        parameters: JSON schema of the tool's parameters; local `$ref`s are followed.
    """
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    types = _types(schema, parameters, frozenset())
    if types <= {"string"}:
        return text
    value = _parse(text)
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return int(value)
    kind = _kind(value)
    matches = kind in types or (kind == "integer" and "number" in types)
    return value if matches and kind != "string" else text


def is_text(name: str, parameters: Schema) -> bool:
    """Whether `coerce` returns every text for argument `name` as it is."""
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(schema, parameters, frozenset()) <= {"string"}


def _types(schema: Any, root: Schema, followed: frozenset[str]) -> set[str]:
    """Names of the JSON types that a schema allows; empty when it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    if "type" in schema:
        return {str(name) for name in _listed(schema["type"])}
    options = [option for key in ("anyOf", "oneOf", "allOf") for option in _listed(schema.get(key, []))]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        followed |= {reference}
        options.append(_resolve(reference, root))
    values = [*_listed(schema.get("enum", [])), *([schema["const"]] if "const" in schema else [])]
    return {name for option in options for name in _types(option, root, followed)} | {*map(_kind, values)}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _resolve(reference: str, root: Schema) -> Any:
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _parse(text: str) -> Any:
    """The JSON value of `text`, which may spell true, false and null as Python does; else the text itself."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} has no JSON form")
    return value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "object")


def tool_schema(tool: Any) -> tuple[str, Schema]:
    """Name and parameters of a tool, given bare or as {type: function, function: ...}.

    Raises:
        GenerationError: it is neither.
    """
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name or not isinstance(parameters, Mapping | None):
        raise GenerationError(
            f"a tool that is not a function schema: {tool!r}",
            "a mapping with a name and parameters that are a JSON schema",
            "correct the tool",
        )
    return name, parameters or {}
