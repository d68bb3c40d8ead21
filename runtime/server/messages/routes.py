"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.body import read_fields
from deltart.runtime.server.errors import anthropic_body
from deltart.runtime.server.job import Job
from deltart.runtime.server.messages.reply import MessageWriter
from deltart.runtime.server.messages.request import CountRequest, MessagesRequest
from deltart.runtime.server.service import Service
from deltart.runtime.server.stream import EventStream, event, while_connected
from deltart.runtime.server.writers import named, whole


async def messages(request: Request) -> Response:
    """A reply as content blocks, whole or as named events."""
    service: Service = request.app.state.service
    fields = await read_fields(request, MessagesRequest, service.settings.limits)
    name = service.name(fields.model)
    job = await service.start(fields.ask(service.settings.limits), request)
    writer = MessageWriter(job.key, name)
    if not fields.stream:
        return json_answer(await while_connected(request, whole(job, writer)))
    pieces = _stream(job, writer)
    return EventStream(pieces, lambda error: event(anthropic_body(error), "error"), job.close, service.settings)


async def count_tokens(request: Request) -> Response:
    """Tokens of the prompt that a conversation makes."""
    service: Service = request.app.state.service
    fields = await read_fields(request, CountRequest, service.settings.limits)
    service.name(fields.model)
    return json_answer({"input_tokens": len(await service.count(fields.ask(service.settings.limits)))})


async def _stream(job: Job, writer: MessageWriter) -> AsyncIterator[bytes]:
    yield named(*writer.begin(job.usage))
    async for step in job.steps():
        events = writer.add(step)
        if events:
            yield named(*events)
    yield named(*writer.end(job.usage))
