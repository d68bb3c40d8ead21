"""What the engine's structured output has to follow, from a request's format and tool choice."""

from __future__ import annotations

import msgspec

from deltart.runtime.server.ask import Ask, OutputFormat
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Limits
from deltart.runtime.structure.structure import Structure


def structure_of(ask: Ask, limits: Limits) -> Structure | None:
    """The structure that replies to `ask` must have; None leaves them free.

    Raises:
        RequestError: a schema beyond the limits.
    """
    if ask.tool_choice.forced:
        tools = [tool for tool in ask.tools if ask.tool_choice.name in ("", tool["function"]["name"])]
        return Structure.calls(_json(tools, "tools", limits), ask.parallel_tool_calls)
    return None if ask.output is None else _text(ask.output, limits)


def _text(output: OutputFormat, limits: Limits) -> Structure:
    if output.kind == "json_object":
        return Structure("json_object", "")
    value = _json(output.value, output.param, limits) if output.kind == "json_schema" else output.value
    return Structure(output.kind, _bounded(value, output.param, limits))


def _json(value: object, param: str, limits: Limits) -> str:
    return _bounded(msgspec.json.encode(value).decode(), param, limits)


def _bounded(text: str, param: str, limits: Limits) -> str:
    if len(text) > limits.schema_bytes:
        raise RequestError(f"{len(text)} characters of {param}", f"at most {limits.schema_bytes}", "", param=param)
    return text
