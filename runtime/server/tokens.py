"""/tokenize and /detokenize, in vLLM's form; llama.cpp's `content` is taken for a prompt."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.ask import Ask
from deltart.runtime.server.body import read_fields
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.service import Service
from deltart.runtime.server.tools import function_tools


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text, or a conversation with what a chat's template reads."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids."""

    model: str | None = None
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    service: Service = request.app.state.service
    limits = service.settings.limits
    fields = await read_fields(request, TokenizeRequest, limits)
    service.name(fields.model)
    text = fields.prompt if fields.prompt is not None else fields.content
    if fields.messages:
        tools = function_tools(fields.tools or [], limits)
        ask = Ask(messages=fields.messages, tools=tools, template=fields.chat_template_kwargs or {})
    elif text is not None:
        ask = Ask(prompt=text)
    else:
        raise RequestError("neither prompt nor messages", "one of them", "send a text", param="prompt")
    ids = await service.count(ask) if text != "" or fields.messages else []
    body: dict[str, Any] = {"count": len(ids), "max_model_len": service.engine.max_context, "tokens": ids}
    if fields.return_token_strs:
        body["token_strs"] = [service.engine.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    return json_answer(body)


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    service: Service = request.app.state.service
    fields = await read_fields(request, DetokenizeRequest, service.settings.limits)
    service.name(fields.model)
    tokenizer = service.engine.tokenizer
    outside = [token for token in fields.tokens if not 0 <= token < tokenizer.vocab_limit]
    if outside:
        raise RequestError(f"token {outside[0]}", f"ids from 0 to {tokenizer.vocab_limit - 1}", "", param="tokens")
    text = await service.aside(lambda: tokenizer.decode(fields.tokens, skip_special=False))
    return json_answer({"prompt": text, "content": text})
