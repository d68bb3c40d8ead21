"""Fields of Anthropic's /v1/messages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from deltart.runtime.server.ask import Ask, OutputFormat, Tool, ToolChoice
from deltart.runtime.server.chat.request import response_format
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.messages.blocks import chat_messages
from deltart.runtime.server.settings import Limits
from deltart.runtime.server.tools import check_function, tool_choice


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model thinks. A budget of tokens is not enforced."""

    type: str
    budget_tokens: int | None = None
    display: str | None = None


class Choice(msgspec.Struct, kw_only=True):
    """Whether tools may or must be called."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """Fields that make the prompt."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def ask(self, limits: Limits) -> Ask:
        """The prompt, whatever API it came by.

        Raises:
            RequestError: 400 that names the field at fault.
        """
        if not self.messages:
            raise RequestError("no messages", "at least one", "send the conversation", param="messages")
        tools = _tools(self.tools or [], limits)
        choice = self.tool_choice
        template = {"enable_thinking": self.thinking is not None and self.thinking.type != "disabled"}
        return Ask(
            messages=chat_messages(self.messages, self.system),
            tools=tools,
            tool_choice=_choice(choice, tools),
            parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
            template=template | (self.chat_template_kwargs or {}),
        )


class MessagesRequest(CountRequest, kw_only=True):
    """Anthropic's fields. Thinking is off unless asked for, as it is there."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    metadata: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    service_tier: str | None = None
    container: Any = None
    context_management: dict[str, Any] | None = None

    def ask(self, limits: Limits) -> Ask:
        """The request, whatever API it came by.

        Raises:
            RequestError: 400 that names the field at fault.
        """
        if len(self.stop_sequences or ()) > limits.stops:
            raise RequestError("too many stop_sequences", f"at most {limits.stops}", "", param="stop_sequences")
        stops = tuple(stop for stop in self.stop_sequences or () if stop)
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "stop": stops or None}
        sampling = {name: value for name, value in given.items() if value is not None}
        return replace(super().ask(limits), sampling=sampling, max_tokens=self.max_tokens, output=_output(self))


def _output(fields: MessagesRequest) -> OutputFormat | None:
    inner = (fields.output_config or {}).get("format")
    asked = inner if isinstance(inner, dict) else fields.output_format
    output = response_format(asked)
    return output and replace(output, param="output_config.format.schema")


def _tools(tools: list[dict[str, Any]], limits: Limits) -> tuple[Tool, ...]:
    """Client tools in the form of chat completions; Anthropic's own server tools have no schema and are left out."""
    if len(tools) > limits.tools:
        raise RequestError(f"{len(tools)} tools", f"at most {limits.tools}", "send fewer", param="tools")
    functions = []
    for i, tool in enumerate(tools):
        if tool.get("type", "custom") != "custom":
            continue
        function = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": tool.get("input_schema"),
        }
        check_function(function, f"tools[{i}]")
        functions.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    return tuple(functions)


def _choice(choice: Choice | None, tools: tuple[Tool, ...]) -> ToolChoice:
    if choice is None:
        return tool_choice(None, tools)
    return tool_choice({"name": choice.name} if choice.type == "tool" else choice.type, tools)
