"""Typed values of tool arguments, one line a case."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


ONE_OF = {"oneOf": [{"properties": {"kind": {"const": "new"}}}, {"required": ["id"]}]}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        # Python literals
        ({"type": "object"}, "{'key': 'value', 'on': True, 'off': None}", {"key": "value", "on": True, "off": None}),
        ({"type": "array"}, "['a', \"it's\"]", ["a", "it's"]),
        ({"type": "array"}, "[{'done': False, 'n': -1.5e3}, ('x',),]", [{"done": False, "n": -1500.0}, ["x"]]),
        ({"type": "object"}, '{"on": True}', {"on": True}),
        ({"type": "array"}, "['\\u00e9\\n\\'', '\\x41']", ["é\n'", "A"]),
        ({"type": ["array", "null"]}, "[None]", [None]),
        ({"type": "object"}, "{'a': nan}", "{'a': nan}"),
        ({"type": "object"}, "{1: 2}", "{1: 2}"),
        ({"type": "object"}, "{'a'}", "{'a'}"),
        ({"type": "object"}, "{not an object", "{not an object"),
        ({"type": "object"}, "__import__('os')", "__import__('os')"),
        ({"type": "array"}, "[x for x in 'ab']", "[x for x in 'ab']"),
        ({"type": "array"}, "('a' * 9, )", "('a' * 9, )"),
        ({"type": "array"}, "['a' 'b']", "['a' 'b']"),
        ({"type": "array"}, "(" * 100_000, "(" * 100_000),
        ({"type": ["string", "array"]}, "['a']", "['a']"),
        # newlines that JSON would have escaped
        ({"type": "array"}, '[{"old": "one\ntwo", "new": "x"}]', [{"old": "one\ntwo", "new": "x"}]),
        ({"type": "object"}, '{"a": "tab\there"}', {"a": "tab\there"}),
        ({"type": "object"}, "{'a': 'one\ntwo'}", {"a": "one\ntwo"}),
        # schemas without a type
        ({}, '{"a": 1}', {"a": 1}),
        ({}, "[1]", [1]),
        ({}, "12", "12"),
        ({}, "true", "true"),
        ({}, "{'a': 1}", "{'a': 1}"),
        ({"properties": {"a": {}}}, '{"a": 1}', {"a": 1}),
        ({"additionalProperties": {"type": "string"}}, "{'a': 'b'}", {"a": "b"}),
        ({"items": {"type": "string"}}, "['a']", ["a"]),
        ({"minItems": 1}, "12", "12"),
        ({"minimum": 0}, "12", 12),
        ({"maximum": 1.5}, "0.5", 0.5),
        ({"pattern": "^[0-9]+$"}, "12", "12"),
        ({"format": "date"}, "2024", "2024"),
        ({"enum": [1, "1"]}, "1", 1),
        # unions
        (ONE_OF, '{"id": 3}', {"id": 3}),
        (ONE_OF, "3", "3"),
        ({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, '["a"]', ["a"]),
        ({"anyOf": [{"type": "array"}, {"type": "null"}]}, "None", None),
        ({"anyOf": [{"type": "boolean"}, {"type": "integer"}]}, "True", True),
        ({"anyOf": [{"type": "boolean"}, {"type": "integer"}]}, "3", 3),
        ({"anyOf": [{"$ref": "#/$defs/Level"}, ONE_OF]}, "{'id': 3}", {"id": 3}),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, '{"a": 1}', {"a": 1}),
        ({"type": "string", "nullable": True}, "null", None),
        ({"type": "integer", "nullable": True}, "3", 3),
        ({"type": ["integer", "null"]}, "three", "three"),
    ],
)
def test_value_as_models_write_it(schema: Any, text: str, value: Any) -> None:
    found = coerce(text, "x", {"properties": {"x": schema}, "$defs": DEFS})
    assert (type(found), found) == (type(value), value)


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(st.lists(literals, max_size=3))
def test_what_python_writes_is_read_back(value: list[Any]) -> None:
    """`repr` is the reference."""
    assert coerce(repr(value), "x", {"properties": {"x": {"type": "array"}}}) == value
