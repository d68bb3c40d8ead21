"""A server over a real engine, in a thread of the test's process, on a port of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from deltart.runtime.engine import Engine
from deltart.runtime.server.app import make_app
from deltart.runtime.server.lifecycle import bind
from deltart.runtime.server.service import Service
from deltart.runtime.server.settings import Settings

NAME = "deltart-nano"


@dataclass
class Served:
    """A running server: its address, a client for it, and what it serves."""

    url: str
    client: httpx.Client
    service: Service
    thread: threading.Thread

    def loop_seconds(self) -> float:
        """What the event loop's thread has computed so far."""
        assert self.thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))


@contextmanager
def served(engine: Engine, settings: Settings | None = None) -> Iterator[Served]:
    """Serves `engine` until the block ends."""
    service = Service(engine, settings or Settings(names=(NAME,)))
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(make_app(service), log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            yield Served(url, client, service, thread)
        finally:
            server.should_exit = True
            thread.join(10)
            service.close()
