"""Values of tool arguments: the text that the model wrote, read by the type in the tool's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltart.errors import GenerationError
from deltart.runtime.text.literals import read_json, read_python

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
# What a schema that names no type still says about it.
_HINTS = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    "array": ("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("pattern", "minLength", "maxLength", "format", "contentEncoding", "contentMediaType"),
}
_ANYTHING = frozenset({"array", "object", "string"})  # a bare number may well be meant as text


def coerce(text: str, name: str, parameters: Schema) -> Any:
    """The value of argument `name`.

    Text stays as it is where the schema declares a string or does not know the argument, and where it can't be
    read as any of the declared types: the caller's own validation then sees the model's own words. A schema
    that allows anything takes objects and arrays, and text for the rest. Objects and arrays may be written as
    Python literals where no string is allowed.

    Args:
        text: what stands between the parameter tags.
        name: the parameter.
        parameters: JSON schema of the tool's parameters; local `$ref`s are followed.
    """
    types = _declared(name, parameters)
    if types <= {"string"}:
        return text
    value = _parse(text, python="string" not in types and bool(types & {"object", "array"}))
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return int(value)
    kind = _kind(value)
    matches = kind in types or (kind == "integer" and "number" in types)
    return value if matches and kind != "string" else text


def is_text(name: str, parameters: Schema) -> bool:
    """Whether `coerce` returns every text for argument `name` as it is."""
    return _declared(name, parameters) <= {"string"}


def _declared(name: str, parameters: Schema) -> frozenset[str]:
    properties = parameters.get("properties")
    if not isinstance(properties, Mapping) or name not in properties:
        return frozenset()
    return _types(properties[name], parameters, frozenset()) or _ANYTHING


def _types(schema: Any, root: Schema, followed: frozenset[str]) -> frozenset[str]:
    """Names of the JSON types that a schema allows; empty when it does not say."""
    if not isinstance(schema, Mapping):
        return frozenset()
    nullable = {"null"} if schema.get("nullable") is True else set()
    if "type" in schema:
        return frozenset({str(name) for name in _listed(schema["type"])} | nullable)
    options = [option for key in ("anyOf", "oneOf", "allOf") for option in _listed(schema.get(key, []))]
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in followed:
        followed |= {reference}
        options.append(_resolve(reference, root))
    values = [*_listed(schema.get("enum", [])), *([schema["const"]] if "const" in schema else [])]
    named = {name for option in options for name in _types(option, root, followed)} | {*map(_kind, values)}
    hinted = {kind for kind, keys in _HINTS.items() if any(key in schema for key in keys)}
    found = named or hinted
    return frozenset(found | nullable) if found else frozenset()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _resolve(reference: str, root: Schema) -> Any:
    node: Any = root
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _parse(text: str, python: bool) -> Any:
    """The value of `text`, JSON with the words true, false and null in any case, or a Python literal; else the text."""
    word = text.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    for read in (read_json, read_python) if python else (read_json,):
        try:
            return read(text)
        except ValueError:
            continue
    return text


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
