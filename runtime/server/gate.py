"""What stands between a socket and the routes: request ids, keys, errors, logs."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltart.errors import DeltaRTError
from deltart.runtime.server.answers import error_answer
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.request_log import write_log
from deltart.runtime.server.service import Service
from deltart.runtime.server.stream import ClientLeftError

log = logging.getLogger("deltart.server")
OPEN = frozenset({"/", "/health", "/health/live", "/health/ready", "/favicon.ico"})  # paths that need no key
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SECURITY = ((b"x-content-type-options", b"nosniff"),)


class Gate:
    """Lets a request through to `app` and answers what goes wrong on the way.

    Args:
        app: the routes.
        service: for keys, metrics and logs.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visit = _Visit(scope, send, request_id(headers))
        scope.setdefault("state", {})["log"] = visit.notes
        began = time.perf_counter()
        try:
            if scope["path"] not in OPEN and scope["method"] != "OPTIONS":
                check_key(headers, self._service.settings.api_keys)
            await self._app(scope, receive, visit.send)
        except (ClientLeftError, ClientDisconnect):
            visit.status = 499
        except RequestError as error:
            await self._refuse(error, scope, receive, visit)
        except DeltaRTError as error:
            await self._refuse(RequestError(error.found, error.expected), scope, receive, visit)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            failure = RequestError("an internal error", "", "see the server's log", status=500)
            await self._refuse(failure, scope, receive, visit)
        finally:
            self._tell(scope, headers, visit, time.perf_counter() - began)

    def _tell(self, scope: Scope, headers: Mapping[str, str], visit: _Visit, seconds: float) -> None:
        """Metrics, log and trace of a request that is over."""
        service, route = self._service, _route(scope)
        service.metrics.answered(route, visit.status)
        write_log(scope, visit.status, seconds, visit.request_id, visit.notes)
        if service.traces is not None:
            jobs = visit.notes.get("jobs")
            known, model = jobs if isinstance(jobs, list) else [], service.settings.names[0]
            service.traces.record(scope["method"], route, headers, seconds, visit.status, model, known)

    async def _refuse(self, error: RequestError, scope: Scope, receive: Receive, visit: _Visit) -> None:
        visit.notes["error"] = error.message
        if not visit.begun:
            await error_answer(scope["path"], error)(scope, receive, visit.send)


class _Visit:
    """One request on its way out: adds headers, and remembers the status."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._send, self.request_id = send, request_id
        self.begun, self.status = False, 499
        self.notes: dict[str, object] = {}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            own = [(b"x-request-id", self.request_id.encode("latin-1")), *_SECURITY]
            message = {**message, "headers": [*message["headers"], *own]}
        await self._send(message)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own id where it is a plain short text, else a fresh one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


def check_key(headers: Mapping[str, str], keys: Sequence[str]) -> None:
    """Compares the request's key with every accepted one, in time that tells nothing of them.

    Raises:
        RequestError: 401: no key, or one that is not accepted. A key in the URL does not count.
    """
    if not keys:
        return
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    if not any(matches):
        raise RequestError(
            "a wrong API key" if given else "no API key",
            "Authorization: Bearer KEY, or x-api-key: KEY",
            "send a key that this server was started with",
            status=401,
            code="invalid_api_key",
        )


def _route(scope: Scope) -> str:
    """The route's own path, never the client's: a label has few values."""
    route = scope.get("route")
    return str(getattr(route, "path", "none"))
