"""OpenAI's Python SDK: required, named and streamed tool calls, a tool loop, JSON by a schema on three APIs."""

import json

import openai
from pydantic import BaseModel, Field

client, model = openai.OpenAI(), "deltart-nano"


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=10**8)


schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": schema}}]
messages = [{"role": "user", "content": "weather?"}]
for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
    reply = client.chat.completions.create(
        model=model, messages=messages, tools=tools, tool_choice=choice, parallel_tool_calls=False, seed=3
    )
    assert reply.choices[0].finish_reason == "tool_calls", reply
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}
messages += [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "22C"}]
assert client.chat.completions.create(model=model, messages=messages, tools=tools, max_tokens=20).choices
with client.chat.completions.stream(
    model=model, messages=messages[:1], tools=tools, tool_choice="required", parallel_tool_calls=False, seed=3
) as stream:
    for _ in stream:
        pass
    (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city"}
paris = [{"role": "user", "content": "Paris"}]
reply = client.chat.completions.parse(model=model, messages=paris, response_format=City, max_tokens=400)
assert isinstance(reply.choices[0].message.parsed, City)
with client.chat.completions.stream(model=model, messages=paris, response_format=City, max_tokens=400) as stream:
    for _ in stream:
        pass
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)
answer = client.responses.parse(model=model, input="Paris", text_format=City)
assert isinstance(answer.output_parsed, City)
with client.responses.stream(model=model, input="Paris", text_format=City) as stream:
    for _ in stream:
        pass
    assert isinstance(stream.get_final_response().output_parsed, City)
flat = [{"type": "function", "name": "get_weather", "parameters": schema, "strict": True}]
answer = client.responses.create(model=model, input="weather?", tools=flat, tool_choice="required")
calls = [item for item in answer.output if item.type == "function_call"]
assert calls and all(set(json.loads(c.arguments)) == {"city"} for c in calls)
more = [
    *messages[:1],
    *answer.output,
    *({"type": "function_call_output", "call_id": c.call_id, "output": "22C"} for c in calls),
]
assert client.responses.create(model=model, input=more, tools=flat, max_output_tokens=20).output is not None
