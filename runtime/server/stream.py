"""Server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.settings import Settings

log = logging.getLogger("deltart.server")
DONE = b"data: [DONE]\n\n"
_COMMENT = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClientLeftError(Exception):
    """The client closed its connection before the answer was complete."""


def event(body: Any, name: str | None = None) -> bytes:
    """One event whose data is `body` as JSON."""
    data = b"data: " + msgspec.json.encode(body) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


class EventStream(Response):
    """Sends pieces of bytes as they come, comments while none come, and an error as an event.

    Args:
        pieces: complete events; each piece is one write.
        failed: the event for an error after the first byte.
        close: called when the stream ends, however it ends.
        settings: for the time between comments, and for the time that a client may not read.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        failed: Callable[[RequestError], bytes],
        close: Callable[[], None],
        settings: Settings,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._pieces, self._failed, self._close, self._settings = pieces, failed, close, settings
        self._silent = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_left, receive, group.cancel_scope)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                group.start_soon(self._keep_alive, send)
                await self._send_all(send)
                group.cancel_scope.cancel()
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        try:
            async for piece in self._pieces:
                await self._write(send, piece)
        except RequestError as error:
            await self._write(send, self._failed(error))
        except TimeoutError:
            log.warning("a client that does not read was cut off")
            return
        except Exception:
            log.exception("a stream failed")
            await self._write(send, self._failed(RequestError("an internal error", status=500)))
        with anyio.move_on_after(self._settings.limits.write_seconds):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, piece: bytes) -> None:
        self._silent = False
        with anyio.fail_after(self._settings.limits.write_seconds):
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await anyio.sleep(self._settings.keep_alive_seconds)
            if self._silent:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            self._silent = True


async def _until_left(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled when the client leaves. The body must have been read.

    Raises:
        ClientLeftError: the client left first.
    """
    result: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_until_left, request.receive, group.cancel_scope)
        try:
            result.append(await work)
        except Exception as error:  # raised below: a task group would wrap it
            result.append(error)
        group.cancel_scope.cancel()
    if not result:
        raise ClientLeftError
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]
