"""instructor: a typed object by tools, JSON, JSON schema, and partial objects from a stream."""

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field


class Address(BaseModel):
    street: str = Field(max_length=20)
    zip: str | None = Field(None, max_length=9)


class User(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    kind: Literal["a", "b"]
    address: Address


class Kind(BaseModel):
    name: str = Field(max_length=20)
    kind: Literal["a", "b"]


ask = {"model": "deltart-nano", "messages": [{"role": "user", "content": "x"}], "max_retries": 0, "max_tokens": 600}
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(), mode=mode)
    assert isinstance(client.chat.completions.create(response_model=User, **ask), User), mode
client = instructor.from_openai(OpenAI(), mode=instructor.Mode.TOOLS)
*_, last = client.chat.completions.create_partial(response_model=Kind, **ask)
assert last.kind in ("a", "b")
