"""JSON schemas on their way to llguidance: what it would take wrongly, and where in a schema it stumbles."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deltart.errors import GenerationError

Json = Any

MAX_CHARACTERS = 1 << 20  # characters of a description
MAX_DEPTH = 100  # of a schema; llguidance reads JSON down to 128
MAX_OPTIONAL = 900  # properties of one object that may be left out: each of them may come next

# White space between tokens is a blank or a line break with its indentation: a model could go on with it for ever.
_SPACE = r" |\r?\n[ \t]{0,32}"

# Formats that llguidance enforces, and those of JSON Schema's own that it does not. Any other has no meaning there.
_FORMATS = frozenset({
    "date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
})  # fmt: skip
STANDARD_FORMATS = _FORMATS | {
    "idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer",
    "relative-json-pointer", "regex",
}  # fmt: skip

# What llguidance's messages are about, where they do not quote the keyword.
_ABOUT = (
    ("circular reference", "$ref"), ("Reference", "$ref"), ("Resource", "$ref"), ("Pointer", "$ref"),
    ("regex", "pattern"),
    ("min/maxProperties", "minProperties"), ("patternProperty", "patternProperties"), ("multipleOf", "multipleOf"),
    ("oneOf", "oneOf"), ("Invalid type", "type"), ("Unknown format", "format"), ("float range", "maximum"),
    ("items; max is", "properties"),
)  # fmt: skip

# Keywords whose value is one schema, a list of schemas, or a mapping of names to schemas.
_ONE = ("items", "additionalItems", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else",
        "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def parse_json(text: str, what: str) -> Json:
    """The JSON value in a text.

    Raises:
        GenerationError: not JSON, not Unicode, too large or too deep; `what` names it.
    """
    if len(text) > MAX_CHARACTERS:
        raise GenerationError(f"{what} of {len(text)} characters", f"at most {MAX_CHARACTERS}", "make it smaller")
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"{what} that is not JSON: {error}", "JSON", "correct it") from error
    if _depth(value) > MAX_DEPTH:
        raise GenerationError(f"{what} nested {_depth(value)} deep", f"at most {MAX_DEPTH}", "use $ref to recur")
    return value


def parse_schema(text: str) -> Json:
    """The schema in a text.

    Raises:
        GenerationError: as `parse_json`, or neither a mapping nor true or false.
    """
    schema = parse_json(text, "a JSON schema")
    if not isinstance(schema, dict | bool):
        raise GenerationError(f"a JSON schema that is a {type(schema).__name__}", "a mapping, true or false")
    return schema


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} has no JSON form")


def _depth(value: Json) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        inner, depth = stack.pop()
        deepest = max(deepest, depth)
        if isinstance(inner, dict | list):
            stack += [(each, depth + 1) for each in (inner.values() if isinstance(inner, dict) else inner)]
    return deepest


def prepared(schema: Json, strict: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The schema as llguidance is to read it, with our options and not its own; and what it leaves out, in words.

    Raises:
        GenerationError: under `strict`, a keyword that llguidance would not enforce to the letter; too many properties.
    """
    made = {"allOf": [schema]} if isinstance(schema, bool) else copy.deepcopy(schema)
    skipped = []
    for where, node in list(subschemas(made)):
        _check_optional(where, node)
        if strict:
            _check_minimum(where, node)
            _check_numbers(where, node)
        if node.get("uniqueItems") is False:
            del node["uniqueItems"]
        named = node.get("format")
        if isinstance(named, str) and named not in (STANDARD_FORMATS if strict else _FORMATS):
            skipped.append(f"format {node.pop('format')!r} at {where} is not enforced")
    options = {"whitespace_pattern": _SPACE, "coerce_one_of": not strict, "lenient": not strict}
    return {**made, "x-guidance": options}, tuple(skipped)


def _check_optional(where: str, node: Mapping[str, Any]) -> None:
    properties, required = node.get("properties"), node.get("required")
    if isinstance(properties, dict):
        optional = len(properties) - len(set(properties) & set(required if isinstance(required, list) else ()))
        if optional > MAX_OPTIONAL:
            raise GenerationError(
                f"{optional} optional properties at {where}/properties",
                f"at most {MAX_OPTIONAL}",
                "require some of them",
            )


def _check_minimum(where: str, node: Mapping[str, Any]) -> None:
    """Keys that are no properties may be repeated, and then count once only."""
    minimum, required = node.get("minProperties", 0), node.get("required", [])
    if not isinstance(minimum, int | float) or not isinstance(required, list):
        return
    repeatable = node.get("additionalProperties") is not False or "patternProperties" in node
    if repeatable and minimum > len(required) + 1:
        raise GenerationError(
            f"minProperties = {minimum} at {where}",
            f"at most {len(required) + 1} where keys are free, for they can't be kept from being repeated",
            "list the properties and require them, or do without strict",
        )


def _check_numbers(where: str, node: Mapping[str, Any]) -> None:
    """llguidance keeps whole numbers of 63 bits and their sign, and rounds larger ones."""
    for key, value in node.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise GenerationError(f"{each} at {where}/{key}", "whole numbers of 63 bits", "do without strict")


def subschemas(schema: Json, where: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of the schema that is itself a schema, with its JSON pointer; `$ref`s are not followed."""
    stack = [(where, schema)]
    while stack:
        where, node = stack.pop()
        if isinstance(node, dict):
            yield where, node
            stack += _inner(where, node)


def _inner(where: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    for key, value in node.items():
        if key in _MAPS and isinstance(value, Mapping):
            yield from ((f"{where}/{key}/{_escaped(name)}", inner) for name, inner in value.items())
        elif key in _LISTS and isinstance(value, list):
            yield from ((f"{where}/{key}/{index}", inner) for index, inner in enumerate(value))
        elif key in _ONE:
            yield f"{where}/{key}", value


def _escaped(name: object) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def place_of(schema: Json, message: str) -> str:
    """JSON pointer of the keyword that llguidance's message is about, or else of what weighs most; empty where neither
    is found."""
    names = [*re.findall(r"[\"'](\$?\w+)[\"']", message), *(name for words, name in _ABOUT if words in message)]
    for name in names:
        found = {where: node[name] for where, node in subschemas(schema) if name in node}
        if found:
            quoted = (where for where, value in found.items() if isinstance(value, str) and value in message)
            return f"{next(quoted, next(iter(found)))}/{name}"
    return heaviest(schema)


def heaviest(schema: Json) -> str:
    """JSON pointer of the keyword that is likeliest to make a schema hard; empty where none stands out."""
    weights = [
        (_weight(key, value), f"{where}/{key}") for where, node in subschemas(schema) for key, value in node.items()
    ]
    weight, pointer = max(weights, default=(0.0, ""))
    return pointer if weight >= 1 else ""


def _weight(key: str, value: Json) -> float:
    """Roughly how many times over it is what a reasonable schema has."""
    if key == "multipleOf" and isinstance(value, int | float):
        return abs(value) / 1000
    if key == "pattern" and isinstance(value, str):
        return len(value) / 1000 + sum(int(count) for count in re.findall(r"\{\d*,?(\d{1,9})\}", value)) / 1000
    if isinstance(value, list | dict):
        return len(value) ** 2 / {"patternProperties": 2_500, "properties": 250_000}.get(key, 10_000)
    return 0.0
