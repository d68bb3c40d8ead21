"""LangChain: chat, stream, structured output both ways, a forced tool."""

import os

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=10**8)


@tool
def get_weather(city: str) -> str:
    """Weather."""
    return "22C"


fields = {"model": "deltart-nano", "base_url": os.environ["OPENAI_BASE_URL"], "api_key": "x"}
model = ChatOpenAI(**fields, temperature=0.2, max_tokens=400, seed=3)
reply = model.invoke("hi")
assert reply.usage_metadata["output_tokens"] > 0
whole = None
for chunk in model.stream("hi", stream_usage=True):
    whole = chunk if whole is None else whole + chunk
assert whole.usage_metadata["output_tokens"] > 0
for method in ("json_schema", "function_calling"):
    assert isinstance(model.with_structured_output(City, method=method).invoke("Paris"), City), method
forced = ChatOpenAI(**fields, extra_body={"chat_template_kwargs": {"enable_thinking": False}}, max_tokens=400)
forced = forced.bind_tools([get_weather], strict=True, parallel_tool_calls=False, tool_choice="get_weather")
(call,) = forced.invoke("hi").tool_calls
assert set(call["args"]) == {"city"}
assert ChatOpenAI(**fields, use_responses_api=True, max_tokens=50).invoke("hi").response_metadata["id"]
