"""The ASGI application: routes over one engine."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from deltart.runtime.server import information, page, tokens
from deltart.runtime.server.answers import error_answer
from deltart.runtime.server.chat.routes import chat_completions
from deltart.runtime.server.completions.routes import completions
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.gate import Gate
from deltart.runtime.server.messages.routes import count_tokens, messages
from deltart.runtime.server.openapi import openapi
from deltart.runtime.server.responses.routes import responses
from deltart.runtime.server.service import Service

ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    Route("/v1/models", information.models),
    Route("/v1/models/{name:path}", information.model),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/health", information.health),
    Route("/health/ready", information.health),
    Route("/health/live", information.live),
    Route("/version", information.version),
    Route("/metrics", information.metrics),
    Route("/server_info", information.server_info),
    Route("/model_info", information.model_info),
    Route("/openapi.json", openapi),
    Route("/", page.index),
)


def make_app(service: Service) -> ASGIApp:
    """The application of `service`."""
    routes = Starlette(routes=ROUTES, exception_handlers={HTTPException: _refused, RequestError: _raised})
    routes.state.service = service
    app: ASGIApp = Gate(routes, service)
    origins = service.settings.allowed_origins
    if origins:
        app = CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path or method."""
    assert isinstance(error, HTTPException)
    path, allowed = request.url.path, (error.headers or {}).get("Allow", "")
    if error.status_code == 405:
        refusal = RequestError(f"{request.method} on {path}"[:200], allowed or "another method", "", status=405)
    else:
        refusal = RequestError(f"no route {path}"[:200], "a path of /openapi.json", "", status=error.status_code)
    answer = error_answer(path, refusal)
    if allowed:
        answer.headers["Allow"] = allowed
    return answer


async def _raised(request: Request, error: Exception) -> Response:
    """Refusals of the routes."""
    assert isinstance(error, RequestError)
    request.state.log["error"] = error.message
    return error_answer(request.url.path, error)
