"""What the engine's structured output has to follow, from a request's format and tool choice."""

from __future__ import annotations

import msgspec

from deltart.errors import GenerationError
from deltart.runtime.engine import Engine
from deltart.runtime.server.ask import Ask, OutputFormat
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Limits
from deltart.runtime.structure.compiler import Compiled
from deltart.runtime.structure.structure import Structure


def structure_of(ask: Ask, engine: Engine, limits: Limits) -> Compiled | None:
    """The structure that replies to `ask` must have, compiled; None leaves them free.

    Raises:
        RequestError: a schema beyond the limits, or one that can't be enforced.
    """
    structure, param = _described(ask, limits)
    if structure is None:
        return None
    try:
        return engine.compile(structure)
    except GenerationError as error:
        raise RequestError(error.found, error.expected, error.hint, param=param) from error


def _described(ask: Ask, limits: Limits) -> tuple[Structure | None, str]:
    """What the request asks for, and the field that does."""
    if ask.tool_choice.forced:
        _json(ask.tools, "tools", limits)
        named = {"name": ask.tool_choice.name} if ask.tool_choice.name else None
        return Structure.tools(ask.tools, named or "required", ask.parallel_tool_calls), "tools"
    return (None, "") if ask.output is None else (_text(ask.output, limits), ask.output.param)


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
