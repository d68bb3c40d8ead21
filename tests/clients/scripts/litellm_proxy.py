"""LiteLLM: its openai and hosted_vllm providers, stream, text completion, responses, JSON by a schema."""

import os

import litellm
from pydantic import BaseModel, Field

litellm.telemetry = False
base, hi = os.environ["OPENAI_BASE_URL"], [{"role": "user", "content": "hi"}]


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=10**8)


fields = {"model": "openai/deltart-nano", "api_base": base, "api_key": "x", "max_tokens": 400}
assert litellm.completion(**fields, messages=hi).choices[0].message.role == "assistant"
*_, last = litellm.completion(**fields, messages=hi, stream=True, stream_options={"include_usage": True})
assert last.usage.completion_tokens > 0
city = litellm.completion(**fields, messages=hi, response_format=City).choices[0].message.content
City.model_validate_json(city)
hosted = litellm.completion(
    model="hosted_vllm/deltart-nano",
    api_base=base,
    messages=hi,
    max_tokens=5,
    reasoning_effort="low",
    extra_body={"chat_template_kwargs": {"enable_thinking": False}},
)
assert hosted.usage.completion_tokens <= 5
text = litellm.text_completion(
    model="text-completion-openai/deltart-nano", api_base=base, api_key="x", prompt="Once", max_tokens=4
)
assert isinstance(text.choices[0].text, str)
assert litellm.responses(model="openai/deltart-nano", api_base=base, api_key="x", input="hi", max_output_tokens=50).id
