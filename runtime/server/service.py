"""What the routes of one server share: the engine, the settings, and the requests under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from deltart.errors import ClosedError, GenerationError, QueueFullError
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine
from deltart.runtime.server.ask import Ask
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.job import Job
from deltart.runtime.server.metrics import Metrics
from deltart.runtime.server.prepare import Prepared, conversation, plain_ids, prepare
from deltart.runtime.server.request_log import note_job
from deltart.runtime.server.settings import Settings
from deltart.runtime.server.traces import Traces
from deltart.runtime.vision.decoder import Decoder

Result = TypeVar("Result")
_WORKERS = 4  # threads that render, tokenize and compile structures
_RETRY = 1.0  # s that a client is told to wait when the queue is full
_TICK = 0.02  # s between looks at the requests under way while draining


class Service:
    """One engine behind HTTP.

    Attributes:
        engine, settings: as given.
        chats: renders conversations; None where the artifact has no template.
        metrics: of the requests served.
        traces: where a collector is configured.
        jobs: requests under way.
        draining: new requests are refused.
        started: seconds since the epoch.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self._decoder = Decoder()
        self.chats = None if engine.template is None else Chats(engine, self._decoder.load)
        if self.chats is not None and engine.sees:
            self._decoder.start()
        self.metrics = Metrics(engine, settings.names[0])
        endpoint = settings.traces_endpoint
        self.traces = None if endpoint is None else Traces(endpoint)
        self.jobs: set[Job] = set()
        self.draining = False
        self.started = int(time.time())
        self._workers = ThreadPoolExecutor(_WORKERS, "deltart-prepare")

    async def start(self, ask: Ask, request: Request | None = None) -> Job:
        """Hands an ask to the engine on behalf of `request`, whose log line it goes into.

        Raises:
            RequestError: 400 for what can't be served, 429 when the queue is full, 503 while draining.
        """
        self.check_open()
        job = await self.aside(lambda: self._submit(prepare(ask, self.engine, self.chats, self.settings)))
        self.jobs.add(job)
        if request is not None:
            note_job(request, job, self.settings.log_content)
        return job

    async def count(self, ask: Ask) -> list[int]:
        """Token ids of the prompt that `ask` makes.

        Raises:
            RequestError: messages or a text that can't be read.
        """
        return await self.aside(lambda: list(self._ids(ask)))

    async def aside(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in a thread: the event loop has streams to serve meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def name(self, asked: str | None) -> str:
        """The model's name that a reply carries.

        Raises:
            RequestError: 404 for a name that is not served here.
        """
        if asked and asked not in self.settings.names:
            expected = f"one of {', '.join(self.settings.names)}"
            hint = "GET /v1/models lists them"
            raise RequestError(
                f"model {asked!r}"[:200], expected, hint, param="model", status=404, code="model_not_found"
            )
        return asked or self.settings.names[0]

    def check_open(self) -> None:
        """Refuses requests that can't be taken now or later.

        Raises:
            RequestError: 503: the server is shutting down, or its engine has failed.
        """
        if not self.draining and not self.engine.closing:
            return
        why = "the server is shutting down" if self.draining else "the engine has failed"
        raise RequestError(why, "a running one", "try again elsewhere", status=503, retry_after=_RETRY)

    async def drain(self, seconds: float) -> int:
        """Refuses new requests and waits for those under way; after `seconds` they are cut. Returns how many were."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self.jobs and time.monotonic() < deadline:
            await asyncio.sleep(_TICK)
        left = len(self.jobs)
        for job in tuple(self.jobs):
            job.handle.cancel()
        while self.jobs and time.monotonic() < deadline + 1:
            await asyncio.sleep(_TICK)
        return left

    def close(self) -> None:
        """Ends the threads and the decoder's processes; the engine is its owner's to close."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()
        if self.traces is not None:
            self.traces.close()

    def _ids(self, ask: Ask) -> Sequence[int]:
        if ask.prompt is None:
            return conversation(ask, self.chats, self.settings).ids
        return plain_ids(ask.prompt, self.engine)

    def _submit(self, prepared: Prepared) -> Job:
        try:
            handle = self.engine.submit(prepared.request)
        except QueueFullError as error:
            raise RequestError(
                error.found, error.expected, "try again later", status=429, retry_after=_RETRY
            ) from error
        except ClosedError as error:
            raise RequestError(error.found, error.expected, "try again elsewhere", status=503) from error
        except GenerationError as error:
            raise RequestError(error.found, error.expected, "") from error
        return Job(prepared, handle, self._done)

    def _done(self, job: Job) -> None:
        self.jobs.discard(job)
        self.metrics.finished(job)
        if self.chats is not None and job.prepared.prompt is not None and not self.draining:
            self._workers.submit(job.remember, self.chats)
