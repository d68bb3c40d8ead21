"""Anthropic's Python SDK: a forced tool call, streamed and whole, and its result sent back."""

import os

import anthropic

client, model = anthropic.Anthropic(base_url=os.environ["SERVER"], api_key="x"), "deltart-nano"
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
tools = [{"name": "get_weather", "description": "w", "input_schema": schema}]
messages = [{"role": "user", "content": "weather?"}]
choice = {"type": "any", "disable_parallel_tool_use": True}
fields = {"model": model, "max_tokens": 2048, "tools": tools, "tool_choice": choice, "messages": messages}
reply = client.messages.create(**fields)
assert reply.stop_reason == "tool_use" and set(reply.content[-1].input) == {"city"}
with client.messages.stream(**fields, thinking={"type": "enabled", "budget_tokens": 1024}) as stream:
    for _ in stream:
        pass
    whole = stream.get_final_message()
(call,) = [block for block in whole.content if block.type == "tool_use"]
assert set(call.input) == {"city"}
result = {"type": "tool_result", "tool_use_id": call.id, "content": "22C"}
more = [*messages, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
assert client.messages.create(model=model, max_tokens=20, tools=tools, messages=more).content is not None
