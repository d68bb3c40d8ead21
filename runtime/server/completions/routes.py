"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.body import read_fields
from deltart.runtime.server.completions.reply import TextChoice, TextCompletion, TextReply, added
from deltart.runtime.server.completions.request import CompletionRequest
from deltart.runtime.server.errors import openai_body
from deltart.runtime.server.job import Job
from deltart.runtime.server.service import Service
from deltart.runtime.server.stream import DONE, EventStream, event, while_connected


async def completions(request: Request) -> Response:
    """Continuations of one prompt or several, whole or as a stream."""
    service: Service = request.app.state.service
    fields = await read_fields(request, CompletionRequest, service.settings.limits)
    batch = Batch(service, fields, service.name(fields.model))
    await batch.start(request)
    if fields.stream:
        return EventStream(batch.stream(), lambda error: event(openai_body(error)), batch.close, service.settings)
    return json_answer(await while_connected(request, batch.whole()))


class Batch:
    """The jobs of a request's prompts."""

    def __init__(self, service: Service, fields: CompletionRequest, name: str) -> None:
        self._service, self._fields, self._name = service, fields, name
        self._jobs: list[Job] = []
        self._replies: list[list[TextReply]] = []

    async def start(self, request: Request) -> None:
        """Hands every prompt to the engine, or none.

        Raises:
            RequestError: one of them can't be served.
        """
        tokenizer, logprobs = self._service.engine.tokenizer, self._fields.logprobs is not None
        try:
            for ask in self._fields.asks(self._service.settings.limits):
                begin = len(self._jobs) * ask.n
                self._jobs.append(await self._service.start(ask, request))
                self._replies.append([TextReply(begin + i, tokenizer, logprobs) for i in range(ask.n)])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes every job."""
        for job in self._jobs:
            job.close()

    async def whole(self) -> TextCompletion:
        """The answer."""
        try:
            await asyncio.gather(*map(self._collect, self._jobs, self._replies))
            choices = [reply.whole() for replies in self._replies for reply in replies]
            return self._body(choices, usage=True)
        finally:
            self.close()

    async def stream(self) -> AsyncIterator[bytes]:
        """Events of the answer, prompt after prompt."""
        for job, replies in zip(self._jobs, self._replies, strict=True):
            echoed = not self._fields.echo
            async for step in job.steps():
                if not echoed:
                    echoed = True
                    yield b"".join(event(self._body([reply])) for reply in self._echo(job, replies))
                yield event(self._body([replies[step.index].of(step)]))
        options = self._fields.stream_options
        if options and options.include_usage:
            yield event(self._body([], usage=True))
        yield DONE

    async def _collect(self, job: Job, replies: list[TextReply]) -> None:
        steps = [step async for step in job.steps()]
        if self._fields.echo:
            self._echo(job, replies)
        for step in steps:
            replies[step.index].of(step)

    def _echo(self, job: Job, replies: list[TextReply]) -> list[TextChoice]:
        return [reply.echo(job.prepared.request.ids, job.handle.prompt_logprobs) for reply in replies]

    def _body(self, choices: list[TextChoice], usage: bool = False) -> TextCompletion:
        job = self._jobs[0]
        body = TextCompletion(id=f"cmpl-{job.key}", created=job.created, model=self._name, choices=choices)
        if usage:
            body.usage = added([job.usage for job in self._jobs])
        return body
