"""What a client asks of the model, whichever API it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools may or must be called: `mode`, and for "named" which one."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""

    @property
    def forced(self) -> bool:
        """The reply has to be a call."""
        return self.mode in ("required", "named")


@dataclass(frozen=True)
class OutputFormat:
    """The form that the answer's text has to have.

    Attributes:
        kind: of `value`.
        value: a JSON schema, or the text of a regular expression or llguidance grammar; None for json_object.
        param: the request's field that asked for it.
        strict: a schema that can't be enforced to the letter is refused; else what can be is enforced.
    """

    kind: Literal["json_schema", "json_object", "regex", "grammar"]
    value: Any = None
    param: str = "response_format"
    strict: bool = True


@dataclass(frozen=True)
class Ask:
    """A prompt and what its replies should be like.

    Attributes:
        prompt: ready text or token ids; None: `messages` are rendered with the checkpoint's template.
        messages: of a chat, in OpenAI's form.
        tools: functions on offer, in OpenAI's form.
        tool_choice: whether they may or must be called.
        parallel_tool_calls: a reply may hold several calls.
        output: the form of the answer's text, if one was asked.
        template: options of the chat template.
        media: options for the reading of pictures and videos, vLLM's mm_processor_kwargs.
        sampling: fields of SamplingParams that the request sets.
        max_tokens: of a reply; clamped to what fits. None: all that fits.
        n: replies.
        logprobs: alternatives to report for each token of the reply; None: no logprobs.
        prompt_logprobs: the same for each token of the prompt but the first.
        cache_salt: prefixes are shared only between requests of one salt.
        max_tokens_param: the request's name for max_tokens.
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[Message] = ()
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    output: OutputFormat | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    cache_salt: str = ""
    max_tokens_param: str = "max_tokens"
