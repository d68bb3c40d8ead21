"""Tools and tool choices of a request, in OpenAI's form, checked before a template reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltart.runtime.server.ask import Tool, ToolChoice
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Limits

_NAME_LENGTH = 256


def function_tools(tools: Sequence[Mapping[str, Any]], limits: Limits) -> tuple[Tool, ...]:
    """`tools` as they came, each found to be a function whose name can't break out of the prompt's markup.

    Raises:
        RequestError: another kind of tool, a bad name, parameters that are not a schema, or too many tools.
    """
    if len(tools) > limits.tools:
        raise RequestError(f"{len(tools)} tools", f"at most {limits.tools}", "send fewer", param="tools")
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise RequestError(
                f"tools[{i}] of type {tool.get('type')!r}",
                '{"type": "function", "function": {"name": ..., "parameters": ...}}',
                "only functions are offered",
                param=f"tools[{i}]",
            )
        check_function(function, f"tools[{i}].function")
    return tuple(tools)


def check_function(function: Mapping[str, Any], param: str) -> None:
    """Refuses a function whose name or parameters are malformed."""
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not is_name(name):
        expected = f"1 to {_NAME_LENGTH} characters without blanks at the ends, controls, < or >"
        raise RequestError(f"a function named {name!r}"[:200], expected, "rename it", param=f"{param}.name")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError("parameters that are not an object", "a JSON schema", "", param=f"{param}.parameters")


def tool_choice(choice: str | Mapping[str, Any] | None, tools: Sequence[Tool]) -> ToolChoice:
    """The choice that `tool_choice` names.

    Raises:
        RequestError: an unknown choice, or one that needs tools which are not on offer.
    """
    if choice is None or choice == "auto":
        return ToolChoice("auto")
    if choice == "none":
        return ToolChoice("none")
    if choice in ("required", "any"):
        return _offered(ToolChoice("required"), tools)
    name = _named(choice) if isinstance(choice, Mapping) else None
    if name is None:
        raise RequestError(
            f"tool_choice = {choice!r}"[:200],
            '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}',
            "",
            param="tool_choice",
        )
    return _offered(ToolChoice("named", name), tools)


def _named(choice: Mapping[str, Any]) -> str | None:
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) and choice.get("type", "function") in ("function", "tool") else None


def _offered(choice: ToolChoice, tools: Sequence[Tool]) -> ToolChoice:
    names = [tool["function"]["name"] for tool in tools]
    if not names:
        raise RequestError("a tool_choice that asks for a call", "tools", "send tools with it", param="tool_choice")
    if choice.mode == "named" and choice.name not in names:
        expected = f"one of {', '.join(names)}"[:200]
        raise RequestError(f"tool_choice names {choice.name!r}"[:200], expected, "", param="tool_choice")
    return choice


def is_name(name: str) -> bool:
    """Whether a function's name can't break out of the prompt's markup."""
    return 0 < len(name) <= _NAME_LENGTH and name.isprintable() and name == name.strip() and not set(name) & set("<>")
