"""What the engine's structured output has to follow, from a request's format and tool choice."""

from __future__ import annotations

import logging

from deltart.errors import GenerationError, MissingDependencyError
from deltart.runtime.engine import Engine
from deltart.runtime.sampling.constraint import CompiledStructure
from deltart.runtime.server.ask import Ask, OutputFormat
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Limits
from deltart.runtime.structure.structure import Structure

log = logging.getLogger("deltart.server")


def structure_of(ask: Ask, engine: Engine, limits: Limits) -> CompiledStructure | None:
    """The structure that replies to `ask` must have, compiled; None leaves them free. It may take seconds.

    Raises:
        RequestError: a schema beyond the limits, or one that can't be enforced.
    """
    param = "tools" if ask.output is None else ask.output.param
    try:
        structure = _structure(ask)
        if structure is None:
            return None
        if len(structure.text) > limits.schema_bytes:
            raise RequestError(
                f"{len(structure.text)} characters of {param}", f"at most {limits.schema_bytes}", param=param
            )
        compiled = engine.compile(structure)
    except MissingDependencyError as error:
        raise RequestError(error.found, error.expected, error.hint, param=param, status=501) from error
    except GenerationError as error:
        raise RequestError(error.found, error.expected, error.hint, param=param) from error
    for warning in compiled.warnings:
        log.info("%s: %s", param, warning)
    return compiled


def _structure(ask: Ask) -> Structure | None:
    """Forced calls, or calls of tools that ask to be enforced beside the answer's form, or the answer's form."""
    answer = None if ask.output is None else _answer(ask.output)
    mode = ask.tool_choice.mode
    if mode == "named":
        return Structure.tools(ask.tools, {"name": ask.tool_choice.name}, ask.parallel_tool_calls)
    if mode == "required":
        return Structure.tools(ask.tools, "required", ask.parallel_tool_calls)
    if mode == "auto" and ask.tools and (answer is not None or _strict(ask)):
        return Structure.tools(ask.tools, "auto", ask.parallel_tool_calls, answer)
    return answer


def _strict(ask: Ask) -> bool:
    return any(tool["function"].get("strict") is True for tool in ask.tools)


def _answer(output: OutputFormat) -> Structure:
    if output.kind == "json_object":
        return Structure.json_object()
    if output.kind == "json_schema":
        return Structure.json_schema(output.value, strict=output.strict)
    return Structure.regex(output.value) if output.kind == "regex" else Structure.grammar(output.value)
