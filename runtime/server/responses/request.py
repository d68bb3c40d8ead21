"""Fields of /v1/responses. Stateless: the client sends the whole conversation each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from deltart.runtime.server.ask import Ask, OutputFormat, Tool
from deltart.runtime.server.chat.request import alternatives, response_format
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.responses.items import messages_of
from deltart.runtime.server.sampling import SamplingFields, sampling_of
from deltart.runtime.server.settings import Limits
from deltart.runtime.server.tools import check_function, tool_choice


class ReasoningOptions(msgspec.Struct, kw_only=True):
    """How much to think; "none" switches it off."""

    effort: str | None = None
    summary: str | None = None


class TextOptions(msgspec.Struct, kw_only=True):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(SamplingFields, kw_only=True):
    """OpenAI's fields, and the sampling fields of chat completions."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    client_metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    truncation: str | None = None
    stream_options: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def ask(self, limits: Limits) -> Ask:
        """The request, whatever API it came by.

        Raises:
            RequestError: 400 that names the field at fault.
        """
        if self.previous_response_id:
            raise _stateful("previous_response_id")
        if self.background:
            raise _stateful("background")
        tools = response_tools(self.tools or [], limits)
        template = dict(self.chat_template_kwargs or {})
        if self.reasoning and self.reasoning.effort == "none":
            template.setdefault("enable_thinking", False)
        wants_logprobs = "message.output_text.logprobs" in (self.include or [])
        asked = self.max_output_tokens is not None
        return Ask(
            messages=messages_of(self.input, self.instructions),
            tools=tools,
            tool_choice=tool_choice(self.tool_choice, tools),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            output=_format(self.text),
            template=template,
            sampling=sampling_of(self, limits),
            max_tokens=self.max_output_tokens if asked else self.max_tokens,
            max_tokens_param="max_output_tokens",
            logprobs=alternatives(self.top_logprobs or 0, "top_logprobs", limits) if wants_logprobs else None,
            cache_salt=self.cache_salt or "",
        )


def response_tools(tools: Sequence[Mapping[str, Any]], limits: Limits) -> tuple[Tool, ...]:
    """The functions among `tools`, in the form of chat completions.

    A namespace's functions count as they stand in it. Hosted tools, such as web_search, are left out: there is
    nothing here that would run them.

    Raises:
        RequestError: a malformed function, or too many tools.
    """
    functions: list[Tool] = []
    for i, tool in enumerate(tools):
        inner = tool.get("tools") if tool.get("type") == "namespace" else None
        for one in inner if isinstance(inner, list) else [tool]:
            if isinstance(one, Mapping) and one.get("type") == "function":
                check_function(one, f"tools[{i}]")
                kept = {
                    key: one[key] for key in ("name", "description", "parameters", "strict") if one.get(key) is not None
                }
                functions.append({"type": "function", "function": kept})
    if len(functions) > limits.tools:
        raise RequestError(f"{len(functions)} tools", f"at most {limits.tools}", "send fewer", param="tools")
    return tuple(functions)


def _format(text: TextOptions | None) -> OutputFormat | None:
    asked = text.format if text else None
    output = response_format(asked)
    if output is None or output.kind != "json_schema":
        return output
    return replace(output, param="text.format.schema")


def _stateful(param: str) -> RequestError:
    return RequestError(
        f"{param}", "the whole conversation in `input`", "this server keeps no responses: leave it out", param=param
    )
