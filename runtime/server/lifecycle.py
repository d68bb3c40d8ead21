"""Running a server: ready, serving, draining on SIGTERM, gone."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from deltart.errors import GenerationError
from deltart.runtime.server.service import Service

log = logging.getLogger("deltart.server")


class DrainingServer(uvicorn.Server):
    """A server that on SIGTERM or SIGINT refuses new requests with 503 and goes once those under way are answered.

    A second signal ends it at once.

    Args:
        config: of uvicorn.
        service: to drain.
        seconds: after which requests under way are cut.
        ready: called once connections are taken.
    """

    def __init__(self, config: uvicorn.Config, service: Service, seconds: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._seconds, self._ready = service, seconds, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._begin, signal.Signals(sig).name)

    def _begin(self, name: str) -> None:
        log.info("%s: answering what is under way, for at most %g s", name, self._seconds)
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        cut = await self._service.drain(self._seconds)
        if cut:
            log.warning("%d requests were cut", cut)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        GenerationError: the address can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        return listener
    except OSError as error:
        raise GenerationError(
            f"{host}:{port} can't be listened on: {error.strerror or error}", "a free address", "pass another --port"
        ) from error


def serve(app: ASGIApp, service: Service, listener: socket.socket, seconds: float, ready: Callable[[], None]) -> None:
    """Serves until a signal comes.

    Args:
        app: of `make_app`.
        service: what the app serves.
        listener: of `bind`.
        seconds: that requests under way have after the signal.
        ready: called once connections are taken.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=65536,
    )
    DrainingServer(config, service, seconds, ready).run([listener])
