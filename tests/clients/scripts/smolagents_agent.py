"""smolagents: both agents take their steps; what a model of 4.6 million parameters makes of them is its own affair."""

import os

from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage, MessageRole


@tool
def get_weather(city: str) -> str:
    """Weather.

    Args:
        city: the city
    """
    return "22C"


model = OpenAIServerModel(model_id="deltart-nano", api_base=os.environ["OPENAI_BASE_URL"], api_key="x", max_tokens=300)
message = [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": "weather?"}])]
reply = model.generate(message, tools_to_call_from=[get_weather])
assert reply.tool_calls and reply.tool_calls[0].function.name == "get_weather"
for agent in (ToolCallingAgent, CodeAgent):
    runner = agent(tools=[get_weather], model=model, max_steps=2, verbosity_level=0)
    runner.run("weather?")
    assert not any("Error code" in str(step.error) for step in runner.memory.steps if getattr(step, "error", None))
