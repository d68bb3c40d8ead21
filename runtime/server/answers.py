"""Whole answers and errors as HTTP responses."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from deltart.runtime.server.errors import RequestError, body_for, headers_of


def json_answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body`, a Struct or plain data, as JSON."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def error_answer(path: str, error: RequestError) -> Response:
    """An error in the shape that clients of `path` read."""
    return json_answer(body_for(path, error), error.status, headers_of(error))
