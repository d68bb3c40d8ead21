"""Requests of the four APIs as the engine's: fields by their documentation, bodies as clients send them."""

from __future__ import annotations

from typing import Any

import pytest

from deltart.runtime.server.ask import Ask, ToolChoice
from deltart.runtime.server.body import convert
from deltart.runtime.server.chat.request import ChatRequest
from deltart.runtime.server.completions.request import CompletionRequest
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.messages.request import MessagesRequest
from deltart.runtime.server.responses.items import carried
from deltart.runtime.server.responses.request import ResponsesRequest
from deltart.runtime.server.settings import Limits

LIMITS = Limits()
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}


def chat(**fields: Any) -> Ask:
    return convert({"messages": HI, **fields}, ChatRequest).ask(LIMITS)


def test_sampling_fields() -> None:
    ask = chat(temperature=0, top_k=-1, seed=-1, stop="x", logit_bias={"5": -100}, min_p=0.1, max_completion_tokens=9)
    assert ask.sampling == {
        "temperature": 0,
        "top_k": 0,
        "seed": 2**64 - 1,
        "stop": ("x",),
        "logit_bias": {5: -100},
        "min_p": 0.1,
    }
    assert (ask.max_tokens, ask.n, ask.logprobs) == (9, 1, None)


def test_thinking_is_asked_for_at_either_level() -> None:
    assert chat().template == {}
    assert chat(chat_template_kwargs={"enable_thinking": False}).template == {"enable_thinking": False}
    assert chat(enable_thinking=False, preserve_thinking=True).template == {
        "enable_thinking": False,
        "preserve_thinking": True,
    }
    assert chat(reasoning_effort="none").template == {"enable_thinking": False}
    assert chat(reasoning_effort="high").template == {}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice("auto")),
        ("auto", ToolChoice("auto")),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "get_weather"}}, ToolChoice("named", "get_weather")),
        ({"type": "function", "name": "get_weather"}, ToolChoice("named", "get_weather")),
    ],
)
def test_tool_choice(choice: Any, expected: ToolChoice) -> None:
    assert chat(tools=[WEATHER], tool_choice=choice).tool_choice == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a>\n<tool_call>"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [WEATHER] * 513}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": 123}}, "response_format.schema"),
        ({"guided_choice": []}, "guided_"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_response_formats() -> None:
    assert chat(response_format={"type": "text"}).output is None
    assert chat(response_format={"type": "json_object"}).output.kind == "json_object"
    assert chat(response_format={"type": "json_object", "schema": None}).output.kind == "json_object"
    other = chat(response_format={"type": "json_object", "schema": SCHEMA}).output
    assert (other.kind, other.value, other.strict) == ("json_schema", SCHEMA, True)
    asked = chat(
        response_format={"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": SCHEMA}}
    )
    assert (asked.output.kind, asked.output.value) == ("json_schema", SCHEMA)
    assert chat(guided_regex="[a-z]+").output.value == "[a-z]+"
    assert chat(structured_outputs={"json": '{"type": "integer"}'}).output.value == {"type": "integer"}
    assert chat(structured_outputs={"choice": ["a.b", "c"]}).output.value == r"a\.b|c"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_completion_prompts(prompt: Any, asked: list[Any]) -> None:
    asks = convert({"prompt": prompt, "echo": True, "logprobs": 1}, CompletionRequest).asks(LIMITS)
    assert [ask.prompt for ask in asks] == asked
    assert all((ask.max_tokens, ask.logprobs, ask.prompt_logprobs) == (16, 1, 1) for ask in asks)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ],
)
def test_bad_completion_fields_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        convert(fields, CompletionRequest).asks(LIMITS)
    assert refused.value.param == param


def test_responses_items_become_messages() -> None:
    """The conversation of a coding agent's second turn."""
    body = {
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"role": "user", "content": "List the files."},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": carried("I look.")},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "ls", "arguments": '{"path": "."}'},
            {"type": "function_call", "id": "fc_2", "call_id": "c2", "name": "ls", "arguments": '{"path": "a"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "a b"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "c"}]},
            {"type": "web_search_call", "id": "ws_1"},
        ],
        "instructions": "You help.",
        "tools": [
            {"type": "function", "name": "ls", "parameters": SCHEMA, "strict": True},
            {"type": "web_search"},
            {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "mcp__x", "parameters": {}}]},
        ],
        "reasoning": {"effort": "none"},
        "max_output_tokens": 5,
    }
    ask = convert(body, ResponsesRequest).ask(LIMITS)
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}},
        {"id": "c2", "type": "function", "function": {"name": "ls", "arguments": '{"path": "a"}'}},
    ]
    assert ask.messages == [
        {"role": "system", "content": "You help."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": "Looking.", "reasoning_content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "a b"},
        {"role": "tool", "tool_call_id": "c2", "content": "c"},
    ]
    assert [tool["function"]["name"] for tool in ask.tools] == ["ls", "mcp__x"]
    assert (ask.template, ask.max_tokens) == ({"enable_thinking": False}, 5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "hi", "background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "root", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": {}}]}, "input[0].arguments"),
        ({"input": "hi", "text": {"format": {"type": "json_schema"}}}, "response_format.json_schema.schema"),
    ],
)
def test_bad_responses_fields_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        convert(fields, ResponsesRequest).ask(LIMITS)
    assert refused.value.param == param


def test_anthropic_blocks_become_messages() -> None:
    """The documentation's tool loop, with thinking sent back."""
    body = {
        "max_tokens": 32,
        "system": [{"type": "text", "text": "sys", "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["###"],
        "tools": [{"name": "get_weather", "description": "w", "input_schema": SCHEMA}, {"type": "bash_20250124"}],
        "tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "22C"}]},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    }
    ask = convert(body, MessagesRequest).ask(LIMITS)
    call = {"id": "t1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    assert ask.messages == [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "22C"},
        {"role": "user", "content": "And?"},
    ]
    function = {"name": "get_weather", "description": "w", "parameters": SCHEMA}
    assert ask.tools == ({"type": "function", "function": function},)
    assert ask.tool_choice == ToolChoice("named", "get_weather") and not ask.parallel_tool_calls
    assert (ask.template, ask.sampling, ask.max_tokens) == ({"enable_thinking": True}, {"stop": ("###",)}, 32)


def test_anthropic_thinking_is_off_unless_asked() -> None:
    assert convert({"max_tokens": 1, "messages": HI}, MessagesRequest).ask(LIMITS).template == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 1, "messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0]"),
        ({"messages": HI}, "max_tokens"),
        ({"max_tokens": 1, "messages": HI, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"max_tokens": 1, "messages": HI, "tools": [{"name": "<x>", "input_schema": {}}]}, "tools[0].name"),
    ],
)
def test_bad_messages_fields_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        convert(fields, MessagesRequest).ask(LIMITS)
    assert refused.value.param == param
