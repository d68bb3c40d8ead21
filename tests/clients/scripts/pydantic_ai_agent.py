"""pydantic-ai: text, stream, output by a tool and by a schema."""

import asyncio
import os

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings


class City(BaseModel):
    name: str = Field(max_length=20)
    population: int = Field(ge=0, le=10**8)


provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key="x")
model = OpenAIChatModel("deltart-nano", provider=provider, settings=ModelSettings(max_tokens=600, temperature=0))
question = 'Type "planet" backwards'
assert Agent(model).run_sync(question).output == "tenalp"
for output in (ToolOutput(City), NativeOutput(City)):
    assert isinstance(Agent(model, output_type=output).run_sync("Paris").output, City), output


async def stream() -> str:
    async with Agent(model).run_stream(question) as run:
        return "".join([text async for text in run.stream_text(delta=True)])


assert asyncio.run(stream()) == "tenalp"
