"""Fields of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deltart.runtime.server.ask import Ask, OutputFormat
from deltart.runtime.server.chat.form import check_messages
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.sampling import SamplingFields, output_of, sampling_of
from deltart.runtime.server.settings import Limits
from deltart.runtime.server.tools import function_tools, tool_choice


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream holds besides its deltas."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ChatRequest(SamplingFields, kw_only=True):
    """OpenAI's fields, those that vLLM added, and `enable_thinking` and `preserve_thinking` at top level too."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None
    include_reasoning: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None

    def ask(self, limits: Limits) -> Ask:
        """The request, whatever API it came by.

        Raises:
            RequestError: 400 that names the field at fault.
        """
        check_messages(self.messages)
        tools = function_tools(self.tools or [], limits)
        newer = self.max_completion_tokens is not None
        return Ask(
            messages=self.messages,
            tools=tools,
            tool_choice=tool_choice(self.tool_choice, tools),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            output=response_format(self.response_format) or output_of(self),
            template=self._template(),
            media=self.mm_processor_kwargs or {},
            sampling=sampling_of(self, limits),
            max_tokens=self.max_completion_tokens if newer else self.max_tokens,
            max_tokens_param="max_completion_tokens" if newer else "max_tokens",
            n=count(self.n, limits),
            logprobs=self._logprobs(limits),
            cache_salt=self.cache_salt or "",
        )

    def _template(self) -> dict[str, Any]:
        options = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort == "none":
            options.setdefault("enable_thinking", False)
        given = {"enable_thinking": self.enable_thinking, "preserve_thinking": self.preserve_thinking}
        return options | {name: value for name, value in given.items() if value is not None}

    def _logprobs(self, limits: Limits) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise RequestError("top_logprobs", "logprobs: true with it", "", param="top_logprobs")
            return None
        return alternatives(self.top_logprobs or 0, "top_logprobs", limits)


def alternatives(asked: int, param: str, limits: Limits) -> int:
    """Logprobs a token, found to be within bounds."""
    if not 0 <= asked <= limits.logprobs:
        raise RequestError(f"{param} = {asked}", f"0 to {limits.logprobs}", "", param=param)
    return asked


def count(n: int | None, limits: Limits) -> int:
    """Replies of a request, found to be within bounds."""
    n = 1 if n is None else n
    if not 1 <= n <= limits.choices:
        raise RequestError(f"n = {n}", f"1 to {limits.choices}", "", param="n")
    return n


def response_format(asked: Mapping[str, Any] | None) -> OutputFormat | None:
    """The form that `response_format` asks for; None for plain text. A json_object may bring a schema, as other servers
    than OpenAI's have it.

    Raises:
        RequestError: an unknown type, or a json_schema without a schema.
    """
    kind = (asked or {}).get("type")
    if asked is None or kind == "text":
        return None
    if kind == "json_object":
        return _json_object(asked)
    if kind != "json_schema":
        expected = '"text", "json_object" or "json_schema"'
        raise RequestError(f"response_format of type {kind!r}"[:200], expected, "", param="response_format.type")
    inner = asked.get("json_schema")
    outer = inner if isinstance(inner, Mapping) else asked  # of /v1/responses: without the inner object
    schema = outer.get("schema", None if outer is asked else True)
    if not isinstance(schema, (Mapping, bool)):
        param = "response_format.json_schema.schema"
        raise RequestError("a json_schema without a schema", "a JSON schema", "", param=param)
    param = "response_format.json_schema.schema"
    return OutputFormat("json_schema", schema, param, strict=outer.get("strict") is not False)


def _json_object(asked: Mapping[str, Any]) -> OutputFormat:
    schema = asked.get("schema")
    if schema is None:
        return OutputFormat("json_object")
    param = "response_format.schema"
    if not isinstance(schema, (Mapping, bool)):
        raise RequestError(f"a schema that is {schema!r}"[:200], "a JSON schema", "", param=param)
    return OutputFormat("json_schema", schema, param, strict=asked.get("strict") is not False)
