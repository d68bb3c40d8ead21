"""Structures as clients send them, each with a reply that a model would write under it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltart.runtime.structure.structure import Structure

FILE = (
    Path(__file__).resolve().parents[2] / "runtime" / "schedule" / "scheduler.py"
)  # long text in a value: code, as agents write it


@dataclass(frozen=True)
class Case:
    """A structure and a reply."""

    name: str
    structure: Structure
    reply: str


def tool(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A function as in OpenAI's requests."""
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Does {name}.", "parameters": schema}}


def agent_tools() -> list[dict[str, Any]]:
    """Fourteen functions in the manner of a coding agent's."""
    text, count, flag = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
    todo = {
        "type": "object",
        "properties": {"content": text, "status": {"enum": ["pending", "in_progress", "completed"]}},
        "required": ["content", "status"],
    }
    made = [
        tool("read_file", {"path": text, "offset": count, "limit": count}, ["path"]),
        tool("write_file", {"path": text, "content": text}, ["path", "content"]),
        tool("edit_file", {"path": text, "old": text, "new": text, "all": flag}, ["path", "old", "new"]),
        tool("todo_write", {"todos": {"type": "array", "items": todo}}, ["todos"]),
        tool("search", {"pattern": text, "paths": {"type": "array", "items": text}, "ignore_case": flag}, ["pattern"]),
    ]
    return made + [tool(f"more_{index}", {"first": text, "second": count, "third": flag}, []) for index in range(9)]


def call(name: str, **values: str) -> str:
    """A call as the family's template writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def cases() -> list[Case]:
    """From small to large."""
    text = FILE.read_text(encoding="utf-8")
    city = {"type": "object", "properties": {"name": {"type": "string"}, "inhabitants": {"type": "integer"}}}
    city |= {"required": ["name", "inhabitants"], "additionalProperties": False}
    wide = {f"field_{index}": {"type": ["string", "integer", "null"]} for index in range(60)}
    part = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/part"}}}
    nested = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            "when": {"type": "string", "format": "date-time"},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 1},
        },
        "required": ["id", "when", "parts"],
        "$defs": {"part": part},
    }
    nested_reply = {"id": "AB-1234", "when": "2026-01-31T10:00:00Z", "parts": [{"name": "a", "next": {"name": "b"}}]}
    tools = agent_tools()
    long = json.dumps({"text": text}, ensure_ascii=False)
    write = call("write_file", path="engine.py", content=text)
    todo = json.dumps([{"content": "read it", "status": "pending"}] * 5)
    return [
        Case("two fields", Structure.json_schema(city), json.dumps({"name": "Paris", "inhabitants": 2_100_000})),
        Case("nested", Structure.json_schema(nested), json.dumps(nested_reply)),
        Case("60 fields", _schema(wide), json.dumps({name: f"value {name}" for name in wide}, indent=2)),
        Case("any JSON", Structure.json_schema(True), json.dumps(tools)),
        Case("long string", _schema({"text": {"type": "string"}}), long),
        Case(
            "bounded string",
            _schema({"text": {"type": "string", "maxLength": 30_000}}),
            json.dumps({"text": text}, ensure_ascii=False),
        ),
        Case("regex", Structure.regex("[A-Z][a-z]+(, [A-Z][a-z]+)*"), ", ".join(["Paris", "Rome", "Oslo"] * 20)),
        Case("tools, JSON value", Structure.tools(tools, "required"), call("todo_write", todos=todo)),
        Case("tools, long text", Structure.tools(tools, "required"), write),
        Case("tools, auto", Structure.tools(tools, "auto"), f"{text}\n\n{call('read_file', path='a.py', limit='20')}"),
    ]


def _schema(properties: dict[str, Any]) -> Structure:
    return Structure.json_schema({"type": "object", "properties": properties, "additionalProperties": False})
