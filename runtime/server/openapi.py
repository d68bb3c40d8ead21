"""GET /openapi.json: the API's own description, made from the types that decode it."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.chat.reply import ChatCompletion
from deltart.runtime.server.chat.request import ChatRequest
from deltart.runtime.server.completions.reply import TextCompletion
from deltart.runtime.server.completions.request import CompletionRequest
from deltart.runtime.server.messages.request import CountRequest, MessagesRequest
from deltart.runtime.server.responses.request import ResponsesRequest
from deltart.runtime.server.tokens import DetokenizeRequest, TokenizeRequest
from deltart.version import __version__

_POSTS: dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct] | None, str]] = {
    "/v1/chat/completions": (ChatRequest, ChatCompletion, "A reply to a conversation"),
    "/v1/completions": (CompletionRequest, TextCompletion, "A continuation of a text"),
    "/v1/responses": (ResponsesRequest, None, "A reply as output items"),
    "/v1/messages": (MessagesRequest, None, "A reply as content blocks"),
    "/v1/messages/count_tokens": (CountRequest, None, "Tokens of a conversation"),
    "/tokenize": (TokenizeRequest, None, "Token ids of a text or conversation"),
    "/detokenize": (DetokenizeRequest, None, "Text of token ids"),
}
_GETS = {
    "/v1/models": "The names of the model",
    "/health": "200 while requests are taken",
    "/health/ready": "The same",
    "/health/live": "200 as long as the process answers",
    "/version": "DeltaRT's version",
    "/server_info": "The server and its load",
    "/model_info": "The model",
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
# One server-sent event: OpenAPI before 3.2 has no itemSchema, and its readers take `schema` for that of each event.
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
_REFUSALS = {
    "400": "The request is malformed, or can't be served",
    "401": "No API key, or a wrong one",
    "404": "Another model's name",
    "408": "The body took too long",
    "413": "The body is too large",
    "429": "Too many requests wait",
    "500": "An internal error",
    "503": "The server is shutting down",
    "504": "The reply took too long",
}


async def openapi(request: Request) -> Response:
    """The document."""
    return json_answer(document())


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = {kind for fields, answer, _ in _POSTS.values() for kind in (fields, answer) if kind is not None}
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {path: {"post": _post(path)} for path in _POSTS}
    paths |= {path: {"get": _operation(text, _json({"type": "object"}))} for path, text in _GETS.items()}
    paths["/metrics"] = {"get": _operation("Prometheus metrics", {"text/plain": {"schema": {"type": "string"}}})}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{name}"] = {"get": _operation("One name of the model", _json({"type": "object"}), [name])}
    return {
        "openapi": "3.1.0",
        "info": {"title": "DeltaRT", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _post(path: str) -> dict[str, Any]:
    fields, answer, text = _POSTS[path]
    content = _json({"type": "object"} if answer is None else _reference(answer))
    if path in _STREAMS:
        content["text/event-stream"] = {"schema": _EVENT}
    body = {"required": True, "content": _json(_reference(fields))}
    return _operation(text, content) | {"requestBody": body}


def _operation(text: str, content: dict[str, Any], parameters: list[Any] | None = None) -> dict[str, Any]:
    refusals = {status: {"description": why, "content": _json({"type": "object"})} for status, why in _REFUSALS.items()}
    answers = {"200": {"description": text, "content": content}, **refusals}
    return {"summary": text, "responses": answers} | ({"parameters": parameters} if parameters else {})


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _reference(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
