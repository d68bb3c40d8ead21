"""Forced calls and answers of a given form, over HTTP: every one can be read, whole and streamed."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from support.serving import Served
from support.sse import anthropic_content, chat_message, events, response_output

pytest.importorskip("llguidance")

PARIS = [{"role": "user", "content": "Paris"}]
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "population": {"type": "integer", "maximum": 99}},
    "required": ["name", "population"],
    "additionalProperties": False,
}
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
FIELDS: dict[str, Any] = {"messages": PARIS, "max_tokens": 2000}


def post(server: Served, path: str, **body: Any) -> Any:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: Served, path: str, **body: Any) -> list[dict[str, Any]]:
    return events(server.client.post(path, json={**body, "stream": True}).text)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_an_answer_by_a_schema(server: Served, thinking: bool, seed: int) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    fields = {**FIELDS, "response_format": asked, "enable_thinking": thinking, "seed": seed, "temperature": 1.5}
    (choice,) = post(server, "/v1/chat/completions", **fields)["choices"]
    jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
    assert choice["finish_reason"] == "stop"
    assert chat_message(stream(server, "/v1/chat/completions", **fields))["content"] == choice["message"]["content"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("seed", range(4))
def test_forced_calls(server: Served, choice: Any, seed: int) -> None:
    fields = {**FIELDS, "tools": TOOLS, "tool_choice": choice, "seed": seed, "parallel_tool_calls": False}
    (reply,) = post(server, "/v1/chat/completions", **fields, temperature=1.5)["choices"]
    (call,) = reply["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert reply["finish_reason"] == "tool_calls" and reply["message"]["content"] is None
    assert call["function"]["name"] == "get_weather" or choice == "required"
    assert set(arguments) == ({"city"} if call["function"]["name"] == "get_weather" else set())
    streamed = chat_message(stream(server, "/v1/chat/completions", **fields, temperature=1.5))
    assert [(c["name"], c["arguments"]) for c in streamed["tool_calls"]] == [
        (call["function"]["name"], call["function"]["arguments"])
    ]


def test_forced_calls_by_the_other_apis(server: Served) -> None:
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    fields = {"input": PARIS, "tools": flat, "tool_choice": "required", "max_output_tokens": 2000, "seed": 1}
    items = [item for item in post(server, "/v1/responses", **fields)["output"] if item["type"] == "function_call"]
    built = response_output(stream(server, "/v1/responses", **fields))
    assert [(i["name"], i["arguments"]) for i in items] == [
        (i["name"], i["pieces"]) for i in built if i["type"] == "function_call"
    ]
    assert items and all(isinstance(json.loads(item["arguments"]), dict) for item in items)
    tools = [{"name": "get_weather", "input_schema": PLACE}]
    asked = {**FIELDS, "tools": tools, "tool_choice": {"type": "any"}, "temperature": 0}
    body = post(server, "/v1/messages", **asked)
    calls = [block for block in body["content"] if block["type"] == "tool_use"]
    assert body["stop_reason"] == "tool_use" and calls and all(set(call["input"]) == {"city"} for call in calls)
    built = anthropic_content(stream(server, "/v1/messages", **asked))
    assert [json.loads(b["pieces"]) for b in built if b["type"] == "tool_use"] == [call["input"] for call in calls]


def test_other_forms(server: Served) -> None:
    fields = {**FIELDS, "enable_thinking": False}

    def content(**more: Any) -> str:
        return str(post(server, "/v1/chat/completions", **fields, **more)["choices"][0]["message"]["content"])

    assert re.fullmatch("[a-c]{3,5}", content(guided_regex="[a-c]{3,5}"))
    assert content(structured_outputs={"choice": ["a.b", "c|d"]}) in ("a.b", "c|d")
    assert content(guided_grammar='start: "x" "y"') == "xy"
    asked = {"type": "json_schema", "name": "city", "schema": CITY}
    body = post(server, "/v1/responses", input=PARIS, text={"format": asked}, max_output_tokens=2000)
    jsonschema.validate(json.loads(body["output"][-1]["content"][0]["text"]), CITY)


def test_compiling_is_counted(server: Served) -> None:
    """Once for each request that has a structure, kept or new; not for the others."""

    def counted() -> float:
        text = server.client.get("/metrics").text
        found = re.search(r"^deltart:structure_compile_seconds_count (\S+)", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    before = counted()
    for fields in ({}, {"guided_regex": "[x-z]"}, {"guided_regex": "[x-z]"}):
        post(server, "/v1/chat/completions", messages=PARIS, max_tokens=5, **fields)
    assert counted() - before == 2


STRANGE = {"type": "object", "properties": {"b": {"type": "strange"}}}
STRICT = {"type": "function", "function": {"name": "a", "parameters": STRANGE, "strict": True}}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": SCHEMA}, "response_format.json_schema.schema"),
        ({"guided_regex": "("}, "guided_"),
        ({"guided_regex": "(a{1000}){1000}"}, "guided_"),
        ({"guided_regex": "a" * 2_000_000}, "guided_"),
        ({"guided_grammar": "start: nowhere"}, "guided_"),
        ({"tools": [STRICT], "tool_choice": "required"}, "tools"),
        ({"tools": [STRICT]}, "tools"),
    ],
    ids=range(7),
)
def test_forms_that_can_not_be_had(server: Served, fields: dict[str, Any], param: str) -> None:
    answer = server.client.post("/v1/chat/completions", json={**FIELDS, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
