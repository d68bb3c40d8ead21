"""Qwen-Agent: chat, and an assistant with a tool by its own prompt and by the server's tools."""

import os

from qwen_agent.agents import Assistant
from qwen_agent.llm import get_chat_model
from qwen_agent.tools.base import BaseTool, register_tool


@register_tool("get_weather")
class Weather(BaseTool):
    description = "weather"
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}  # noqa: RUF012

    def call(self, params, **_):
        return "22C"


generate = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}, "top_p": 0.8, "max_tokens": 100}
config = {
    "model": "deltart-nano",
    "model_type": "oai",
    "model_server": os.environ["OPENAI_BASE_URL"],
    "api_key": "EMPTY",
    "generate_cfg": generate,
}
llm = get_chat_model(config)
question = [{"role": "user", "content": 'Type "planet" backwards'}]
*_, streamed = llm.chat(messages=question)
assert streamed[-1]["role"] == "assistant"
assert llm.chat(messages=question, stream=False)[-1]["role"] == "assistant"
for raw in (False, True):
    bot = Assistant(
        llm={**config, "generate_cfg": {**generate, "use_raw_api": raw}},
        function_list=["get_weather"],
        system_message="You help.",
    )
    *_, last = bot.run(messages=[{"role": "user", "content": "weather in Paris?"}])
    assert last[-1]["role"] == "assistant", last
