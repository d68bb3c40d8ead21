"""Descriptions of structures: what they take and refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltart.errors import GenerationError
from deltart.runtime.structure.structure import Structure

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]


def test_descriptions_are_values() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert Structure.json_schema(schema) == Structure.json_schema(json.dumps(schema))
    assert hash(Structure.tools(TOOLS)) == hash(Structure.tools(TOOLS))
    assert Structure.json_schema(schema) != Structure.json_schema(schema, strict=False)
    assert list(json.loads(Structure.json_schema(schema).text)["properties"]) == ["b", "a"]


@pytest.mark.parametrize("choice", [{"name": "b"}, {"type": "function", "function": {"name": "b"}}])
def test_a_named_tool_is_required_alone(choice: dict[str, Any]) -> None:
    structure = Structure.tools(TOOLS, choice)
    assert structure.required
    assert [tool["function"]["name"] for tool in json.loads(structure.text)] == ["b"]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"tools": []}, "0 tools"),
        ({"tools": TOOLS + TOOLS[:1]}, "3 tools with 2 names"),
        ({"tools": [{"type": "function"}]}, "not a function schema"),
        ({"tools": TOOLS, "choice": {"name": "c"}}, "'c'"),
        ({"tools": TOOLS, "choice": "none"}, "'none'"),
        ({"tools": TOOLS, "choice": "required", "answer": Structure.json_object()}, "beside required"),
    ],
)
def test_tools_that_make_no_sense_are_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(GenerationError, match=found):
        Structure.tools(**arguments)


def test_what_is_no_json_is_no_schema() -> None:
    with pytest.raises(GenerationError, match="not JSON"):
        Structure.json_schema({"const": float("nan")})
    with pytest.raises(GenerationError, match="not JSON"):
        Structure.json_schema({"const": {1, 2}})
