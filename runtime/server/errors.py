"""Refusals in the shapes that clients read: OpenAI's, and Anthropic's on its own paths."""

from __future__ import annotations

from typing import Any

from deltart.errors import DeltaRTError

# HTTP status: (OpenAI's error type, Anthropic's error type)
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    499: ("invalid_request_error", "invalid_request_error"),
    500: ("server_error", "api_error"),
    501: ("server_error", "api_error"),
    503: ("service_unavailable_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
}


class RequestError(DeltaRTError):
    """A request that is answered with an HTTP error.

    Args:
        found, expected, hint: as of DeltaRTError.
        param: the field of the request that is at fault.
        status: of HTTP.
        code: a machine's word for it, such as "context_length_exceeded".
        retry_after: seconds until another try makes sense.
    """

    def __init__(
        self,
        found: str,
        expected: str = "",
        hint: str = "",
        *,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(found, expected, hint)
        self.param, self.status, self.code, self.retry_after = param, status, code, retry_after

    @property
    def message(self) -> str:
        """What was found, what was expected and what to do, on one line."""
        parts = [self.found, f"expected {self.expected}" if self.expected else "", self.hint]
        return "; ".join(" ".join(part.split()) for part in parts if part)


def openai_body(error: RequestError) -> dict[str, Any]:
    """The error as OpenAI's clients read it, with the parts of its message beside it."""
    kind = _TYPES.get(error.status, _TYPES[500])[0]
    detail = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": detail | {"found": error.found, "expected": error.expected, "hint": error.hint}}


def anthropic_body(error: RequestError) -> dict[str, Any]:
    """The error as Anthropic's clients read it."""
    message = f"{error.param}: {error.message}" if error.param else error.message
    return {"type": "error", "error": {"type": _TYPES.get(error.status, _TYPES[500])[1], "message": message}}


def body_for(path: str, error: RequestError) -> dict[str, Any]:
    """The error in the shape that clients of `path` read."""
    return anthropic_body(error) if path.startswith("/v1/messages") else openai_body(error)


def headers_of(error: RequestError) -> dict[str, str]:
    """Headers that belong to the error: Retry-After in whole seconds, WWW-Authenticate."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after + 0.5)))
    return headers
