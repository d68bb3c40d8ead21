"""Typed values of tool arguments, one line a case."""

from __future__ import annotations

import math
from typing import Any

import pytest

from deltart.runtime.text.tool_arguments import coerce

DEFS = {"Color": {"enum": ["red", "blue"]}, "Level": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, " null ", " null "),
        ({"type": "string"}, '"quoted"', '"quoted"'),
        ({"type": "integer"}, " 12 ", 12),
        ({"type": "integer"}, "12.0", 12),
        ({"type": "integer"}, "12.5", "12.5"),
        ({"type": ["integer", "number"]}, "12.5", 12.5),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "integer"}, "true", "true"),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "3", 3),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, '[1, {"a": null}]', [1, {"a": None}]),
        ({"type": "array"}, "[1,", "[1,"),
        ({"type": "array"}, "[" * 100_000, "[" * 100_000),
        ({"type": "object"}, '{"a": "é"}', {"a": "é"}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "12", "12"),
        ({"type": ["string", "null"]}, '"a"', '"a"'),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "12", 12),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "12a", "12a"),
        ({"oneOf": [{"type": "array"}, {"type": "null"}]}, "null", None),
        ({"enum": [1, 2]}, "2", 2),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"const": True}, "true", True),
        ({"$ref": "#/$defs/Level"}, "3", 3),
        ({"$ref": "#/$defs/Color"}, "red", "red"),
        ({"anyOf": [{"$ref": "#/$defs/Level"}, {"type": "null"}]}, "null", None),
        ({"allOf": [{"$ref": "#/$defs/Level"}]}, "3", 3),
        ({"$ref": "#/$defs/Loop"}, "3", "3"),
        ({"$ref": "#/$defs/Absent"}, "3", "3"),
        ({"description": "anything"}, "3", "3"),
        ({"type": 5, "anyOf": 5}, "3", "3"),
        (True, "3", "3"),
    ],
)
def test_value_by_schema(schema: Any, text: str, value: Any) -> None:
    found = coerce(text, "x", {"properties": {"x": schema}, "$defs": DEFS})
    assert (type(found), found) == (type(value), value)


def test_what_the_schema_does_not_know_stays_text() -> None:
    assert coerce("1", "y", {"properties": {"x": {"type": "integer"}}}) == "1"
    assert coerce("1", "y", {}) == "1"
    assert coerce("1", "y", {"properties": None}) == "1"


def test_large_integers_are_exact() -> None:
    assert coerce(str(2**70), "x", {"properties": {"x": {"type": "number"}}}) == 2**70
    assert math.isclose(coerce("-0.1", "x", {"properties": {"x": {"type": "number"}}}), -0.1)
