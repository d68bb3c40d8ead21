"""Several engines behind one address, on Ray Serve.

One gateway takes connections, reads each request whole and hands it to the replica that is likeliest to hold its
prefix, by Ray's own router. A replica runs the same application as a plain server and sends back what it answers.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from deltart.errors import GenerationError, MissingDependencyError
from deltart.runtime.server.answers import error_answer
from deltart.runtime.server.errors import RequestError, openai_body
from deltart.runtime.server.settings import Settings
from deltart.runtime.server.stream import event

log = logging.getLogger("deltart.server")
# By its own file: the public name beside it imports vLLM.
_ROUTER = "ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router"
_TRIES = 3  # replicas that a request is given to until one begins to answer
_ONGOING = 1024  # requests of one replica, those that wait for a slot included


@dataclass(frozen=True)
class Call:
    """A whole HTTP request. Ray's router reads `messages`."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    messages: list[dict[str, Any]] = field(default_factory=list)


class Replica:
    """One engine and its application."""

    def __init__(self, engine_arguments: Mapping[str, Any], settings: Settings) -> None:
        from deltart.runtime.engine import Engine
        from deltart.runtime.server.app import make_app
        from deltart.runtime.server.service import Service

        self._engine = Engine.open(**engine_arguments)
        self._service = Service(self._engine, settings)
        self._app = make_app(self._service)

    async def answer(self, call: Call) -> AsyncIterator[Message]:
        """The messages that the application sends, as they come. The caller's leaving is the client's."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue(64)
        left = asyncio.Event()
        bodies = [{"type": "http.request", "body": call.body, "more_body": False}]

        async def receive() -> Message:
            if bodies:
                return bodies.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(_scope(call), receive, sent.put)
            finally:
                await sent.put(None)

        task = asyncio.get_running_loop().create_task(run())
        try:
            while (message := await sent.get()) is not None:
                yield message
        finally:
            left.set()
            task.cancel()

    def check_health(self) -> None:
        """Raises where the engine has failed: Ray then starts another replica."""
        self._service.check_open()

    def __del__(self) -> None:
        self._engine.close()


class Gateway:
    """An ASGI application that hands requests to replicas.

    Args:
        replicas: Ray's handle of them.
    """

    def __init__(self, replicas: Any) -> None:
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers, messages = list(scope["headers"]), _messages(scope["path"], body)
        call = Call(scope["method"], scope["path"], scope["query_string"], headers, body, messages)
        await self._forward(call, scope, receive, send)

    async def _forward(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Until a replica has begun to answer, another one is tried when it dies."""
        from ray.exceptions import RayError

        error = RequestError("a replica that was lost", "an answer", "try again", status=503, retry_after=1)
        for _ in range(_TRIES):
            begun = False
            answers = self._replicas.remote(call)
            try:
                async for message in answers:
                    begun = True
                    await send(message)
                return
            except RayError:
                log.exception("a replica was lost")
                if begun:
                    await send({"type": "http.response.body", "body": event(openai_body(error)), "more_body": False})
                    return
            finally:
                answers.cancel()
        await error_answer(call.path, error)(scope, receive, send)


def serve_replicas(
    count: int,
    engine_arguments: Mapping[str, Any],
    settings: Settings,
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Serves until a signal comes; Ray then lets the requests under way end.

    Args:
        count: of engines.
        engine_arguments: of Engine.open; each replica opens its own.
        settings: of each replica's application.
        host, port: of the gateway.
        ready: called with the address once every replica is up.

    Raises:
        MissingDependencyError: Ray is not installed.
        GenerationError: no replicas were asked for.
    """
    if count < 1:
        raise GenerationError(f"{count} replicas", "at least one", "--replicas 2")
    try:
        importlib.import_module(_ROUTER)
        from ray import serve
        from ray.serve.config import RequestRouterConfig
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{error.name} is not installed", "what deltart serve --replicas needs", "pip install 'deltart[ray]'"
        ) from error
    serve.start(http_options={"host": host, "port": port})
    balance = {"imbalanced_threshold": engine_arguments["options"].slots}  # requests ahead before affinity gives way
    name = f"{_ROUTER}:PrefixCacheAffinityRouter"
    router = RequestRouterConfig(request_router_class=name, request_router_kwargs=balance)
    cpus = {"num_cpus": engine_arguments.get("threads") or 1}
    options = {"num_replicas": count, "max_ongoing_requests": _ONGOING, "ray_actor_options": cpus}
    replicas = serve.deployment(Replica).options(**options, request_router_config=router)
    light = {"max_ongoing_requests": count * _ONGOING, "ray_actor_options": {"num_cpus": 0}}
    gateway = serve.deployment(_ingress()).options(**light)
    serve.run(gateway.bind(replicas.bind(dict(engine_arguments), settings)))
    ready(f"http://{host}:{port}")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()


def _ingress() -> type:
    """The class of Ray's ingress, whose application is a Gateway over the replicas it is bound to."""
    from ray import serve

    @serve.ingress()
    class GatewayIngress:
        def __init__(self, replicas: Any) -> None:
            self._replicas = replicas

        def __serve_build_asgi_app__(self) -> Gateway:
            return Gateway(self._replicas)

    return GatewayIngress


def _scope(call: Call) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "root_path": "",
        "query_string": call.query,
        "headers": call.headers,
        "client": None,
        "server": None,
        "state": {},
    }


def _messages(path: str, body: bytes) -> list[dict[str, Any]]:
    """What the request says, as one message for Ray's router, which takes no empty one; it need not be understood."""
    names = ("tools", "system", "instructions", "messages", "input", "prompt")
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        fields = {}
    text = b"".join(bytes(fields[name]) for name in names if name in fields).decode("utf-8", "replace")
    return [{"role": "user", "content": text or path}]
