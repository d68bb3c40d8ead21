"""From an ask to the engine's request: rendering, tokenizing, defaults, clamps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltart.errors import GenerationError, MissingDependencyError
from deltart.runtime.conversation import Chats, Prompt
from deltart.runtime.engine import Engine
from deltart.runtime.sequence import Request
from deltart.runtime.server.ask import Ask, Tool
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.media import fetched, refuse_media
from deltart.runtime.server.sampling import params_from
from deltart.runtime.server.settings import Settings
from deltart.runtime.server.structures import structure_of
from deltart.runtime.text.messages import normalized
from deltart.runtime.vision.images import MediaLimits
from deltart.runtime.vision.load import Processing
from deltart.runtime.vision.medium import Span
from deltart.runtime.vision.prompt import described

_TEMPLATE_OPTIONS = ("enable_thinking", "preserve_thinking")
_TOOL_CALL = "<tool_call>"
_NEVER = -100.0  # a logit bias that no token survives


@dataclass(frozen=True)
class Prepared:
    """A request ready for the engine, and how its replies are to be read.

    Attributes:
        request: for Engine.submit.
        prompt: the conversation, whose replies have reasoning and calls to be told apart; None for plain text.
        tools: functions whose calls are looked for in the replies.
        one_call: a reply ends with its first call.
        structure_seconds: that compiling its structure took, or finding the compiled one; None without a structure.
    """

    request: Request
    prompt: Prompt | None = None
    tools: tuple[Tool, ...] = ()
    one_call: bool = False
    structure_seconds: float | None = None


def prepare(ask: Ask, engine: Engine, chats: Chats | None, settings: Settings) -> Prepared:
    """Renders, tokenizes and completes `ask`. Takes time with its length: not for an event loop's thread.

    Raises:
        RequestError: messages that the template refuses, a prompt beyond the context, a bad value.
    """
    prompt = conversation(ask, chats, settings) if ask.prompt is None else None
    ids = plain_ids(ask.prompt or "", engine) if prompt is None else prompt.ids
    limit = _limit(ask, ids, prompt.media if prompt else (), engine, settings)
    given = {**ask.sampling, "max_new_tokens": limit}
    if ask.max_tokens is None or ask.max_tokens > limit:  # a clamp is not the client's contradiction
        given["min_tokens"] = min(ask.sampling.get("min_tokens", 0), limit)
    banned = _banned(ask, engine)
    if banned:
        given["logit_bias"] = {**given.get("logit_bias", {}), **banned}
    began = time.perf_counter()
    structure = structure_of(ask, engine, settings.limits)
    took = None if structure is None else time.perf_counter() - began
    reads_calls = prompt is not None and ask.tool_choice.mode != "none"
    request = Request(
        ids=ids,
        params=params_from(engine.defaults, given),
        n=ask.n,
        structure=structure,
        logprobs=ask.logprobs,
        prompt_logprobs=ask.prompt_logprobs,
        deadline=None if settings.request_seconds is None else time.monotonic() + settings.request_seconds,
        cache_salt=ask.cache_salt,
        thinking=prompt is not None and prompt.thinking,
        media=prompt.media if prompt is not None else (),
    )
    tools = tuple(ask.tools) if reads_calls else ()
    one_call = bool(tools) and not ask.parallel_tool_calls
    return Prepared(request, prompt, tools, one_call, structure_seconds=took)


def conversation(ask: Ask, chats: Chats | None, settings: Settings) -> Prompt:
    """The rendered messages of `ask`.

    Raises:
        RequestError: there is no template, it refuses the messages, or they hold media.
    """
    if chats is None:
        raise RequestError("a chat", "/v1/completions", "this artifact has no chat template", param="messages")
    messages: Sequence[Mapping[str, Any]] = ask.messages
    if not chats.engine.sees:
        refuse_media(messages)
    else:
        messages = fetched(messages, settings)
    options, variables = _template_options({**settings.template_defaults, **ask.template})
    bounds = settings.limits
    limits = MediaLimits(
        bounds.media_bytes, seconds=bounds.image_seconds, video_bytes=bounds.media_bytes,
        video_seconds=bounds.video_seconds,
    )  # fmt: skip
    try:
        return chats.prompt(
            normalized(messages), ask.tools or None, _processing(ask), limits,
            variables=variables, **options,
        )  # fmt: skip
    except (GenerationError, MissingDependencyError) as error:
        raise RequestError(error.found, error.expected, "change the messages", param="messages") from error


def _processing(ask: Ask) -> Processing:
    try:
        return Processing.of(ask.media)
    except GenerationError as error:
        raise RequestError(error.found, error.expected, "", param="mm_processor_kwargs") from error


def plain_ids(prompt: str | Sequence[int], engine: Engine) -> tuple[int, ...]:
    """Token ids of a prompt that is no conversation.

    Raises:
        RequestError: it is empty, no Unicode text, or holds ids outside the vocabulary.
    """
    try:
        ids = tuple(engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    except GenerationError as error:
        raise RequestError(error.found, error.expected, "", param="prompt") from error
    if not ids:
        raise RequestError("an empty prompt", "at least one token", "send some text", param="prompt")
    outside = [token for token in ids if not 0 <= token < engine.vocab_limit]
    if outside:
        raise RequestError(f"token {outside[0]}", f"ids from 0 to {engine.vocab_limit - 1}", "", param="prompt")
    return ids


def _template_options(asked: Mapping[str, Any]) -> tuple[dict[str, bool], dict[str, Any]]:
    """The options that every template of the family has, and the variables that only some read."""
    options = {name: asked[name] for name in _TEMPLATE_OPTIONS if asked.get(name) is not None}
    for name, value in options.items():
        if not isinstance(value, bool):
            param = f"chat_template_kwargs.{name}"
            raise RequestError(f"{name} = {value!r}"[:200], "true or false", "", param=param)
    return options, {name: value for name, value in asked.items() if name not in _TEMPLATE_OPTIONS}


def _limit(ask: Ask, ids: Sequence[int], media: Sequence[Span], engine: Engine, settings: Settings) -> int:
    """Most tokens of a reply: what was asked, cut to what fits and what the operator allows."""
    if ask.max_tokens is not None and ask.max_tokens < 1:
        raise RequestError(f"{ask.max_tokens_param} = {ask.max_tokens}", "at least 1", "", param=ask.max_tokens_param)
    room = engine.max_context - len(ids)
    if room < 1:
        raise RequestError(
            f"a prompt of {len(ids)} tokens" + (f" ({described(media)})" if media else ""),
            f"fewer than {engine.max_context}, the context of this server",
            "shorten the conversation, or serve with a larger --max-model-len",
            param="messages" if ask.prompt is None else "prompt",
            code="context_length_exceeded",
        )
    return min(bound for bound in (room, ask.max_tokens, settings.limits.max_tokens) if bound is not None)


def _banned(ask: Ask, engine: Engine) -> dict[int, float]:
    """A bias that keeps a model with tools in its prompt from calling them, under tool_choice "none"."""
    if not ask.tools or ask.tool_choice.mode != "none":
        return {}
    token = engine.tokenizer.id_of(_TOOL_CALL)
    return {} if token is None else {token: _NEVER}
