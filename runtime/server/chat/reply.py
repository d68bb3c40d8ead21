"""Answers of /v1/chat/completions, whole or as chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from deltart.runtime.backends.slots import TokenLogprobs
from deltart.runtime.sequence import Usage
from deltart.runtime.server.collected import Collected
from deltart.runtime.server.replies import CallStart, Content, Part, Reasoning, Step
from deltart.runtime.text.tokenizer import Tokenizer


class Function(msgspec.Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class Call(msgspec.Struct, kw_only=True):
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: Function


class Message(msgspec.Struct, kw_only=True):
    """A whole message, or what a chunk adds to one. Reasoning stands under both names that clients read."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType | None = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class Alternative(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Alternative, kw_only=True):
    top_logprobs: list[Alternative]


class Logprobs(msgspec.Struct, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class Choice(msgspec.Struct, kw_only=True):
    index: int
    message: Message | UnsetType = UNSET
    delta: Message | UnsetType = UNSET
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET


class PromptDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageBody(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody | UnsetType | None = UNSET
    system_fingerprint: str | None = None
    service_tier: str | UnsetType | None = UNSET


def usage_body(usage: Usage) -> UsageBody:
    """The engine's counts under OpenAI's names; drafts of speculation are never counted."""
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionDetails(reasoning_tokens=usage.reasoning_tokens),
    )


def logprobs_body(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> Logprobs | None:
    """Tokens with their text, bytes and alternatives."""
    if not tokens:
        return None
    content = []
    for entry in tokens:
        top = [_alternative(token, logprob, tokenizer) for token, logprob in entry.top]
        own = _alternative(entry.token, entry.logprob, tokenizer)
        content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return Logprobs(content=content)


def _alternative(token: int, logprob: float, tokenizer: Tokenizer) -> Alternative:
    data = tokenizer.token_bytes(token)
    return Alternative(token=data.decode("utf-8", "replace"), logprob=max(logprob, -9999.0), bytes=list(data))


class ChatChunks:
    """Turns steps into the chunks of a stream.

    Args:
        key, created, model: as the chunks carry them.
        tokenizer: for logprobs.
        reasoning: chunks hold the reasoning.
    """

    def __init__(self, key: str, created: int, model: str, tokenizer: Tokenizer, reasoning: bool = True) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._tokenizer, self._reasoning = tokenizer, reasoning

    def first(self, index: int) -> ChatCompletion:
        """The chunk that opens reply `index`."""
        return self._chunk(index, Message(role="assistant", content=""))

    def of(self, step: Step) -> list[ChatCompletion]:
        """The chunks of a step: one for each part; logprobs go with the first, the end with a chunk of its own."""
        deltas = [delta for part in step.parts if (delta := self._delta(part)) is not None]
        if step.logprobs and not deltas:
            deltas = [Message(content="")]
        chunks = [self._chunk(step.index, delta) for delta in deltas]
        if chunks:
            chunks[0].choices[0].logprobs = logprobs_body(step.logprobs, self._tokenizer)
        if step.end is not None:
            end = self._chunk(step.index, Message())
            end.choices[0].finish_reason, end.choices[0].stop_reason = step.end.reason, step.end.stop
            chunks.append(end)
        return chunks

    def usage(self, usage: Usage) -> ChatCompletion:
        """The last chunk, which has no choices."""
        return ChatCompletion(**self._head, choices=[], usage=usage_body(usage))

    def _chunk(self, index: int, delta: Message) -> ChatCompletion:
        return ChatCompletion(**self._head, choices=[Choice(index=index, delta=delta)])

    def _delta(self, part: Part) -> Message | None:
        if isinstance(part, Reasoning):
            return Message(reasoning_content=part.text, reasoning=part.text) if self._reasoning else None
        if isinstance(part, Content):
            return Message(content=part.text)
        if isinstance(part, CallStart):
            function = Function(name=part.name, arguments="")
            return Message(tool_calls=[Call(index=part.call, id=part.id, type="function", function=function)])
        return Message(tool_calls=[Call(index=part.call, function=Function(arguments=part.text))])


class ChatAnswer:
    """Whole answers. Takes the arguments of ChatChunks."""

    def __init__(self, key: str, created: int, model: str, tokenizer: Tokenizer, reasoning: bool = True) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "created": created,
            "model": model,
        }
        self._tokenizer, self._reasoning = tokenizer, reasoning

    def of(self, replies: Sequence[Collected], usage: Usage) -> ChatCompletion:
        """The answer that holds `replies`."""
        choices = [self._choice(i, reply) for i, reply in enumerate(replies)]
        return ChatCompletion(**self._head, choices=choices, usage=usage_body(usage))

    def _choice(self, index: int, reply: Collected) -> Choice:
        reasoning = (reply.reasoning or None) if self._reasoning else None
        calls = [
            Call(id=call.id, type="function", function=Function(name=call.name, arguments=call.arguments))
            for call in reply.calls
        ]
        message = Message(
            role="assistant",
            content=reply.content or (None if calls else ""),
            refusal=None,
            reasoning_content=reasoning,
            reasoning=reasoning,
            tool_calls=calls or UNSET,
        )
        logprobs = logprobs_body(reply.logprobs, self._tokenizer)
        return Choice(
            index=index, message=message, logprobs=logprobs, finish_reason=reply.reason, stop_reason=reply.stop
        )
