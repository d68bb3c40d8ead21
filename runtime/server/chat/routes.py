"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.body import read_fields
from deltart.runtime.server.chat.reply import ChatAnswer, ChatChunks
from deltart.runtime.server.chat.request import ChatRequest
from deltart.runtime.server.errors import openai_body
from deltart.runtime.server.job import Job
from deltart.runtime.server.service import Service
from deltart.runtime.server.stream import DONE, EventStream, event, while_connected


async def chat_completions(request: Request) -> Response:
    """Replies to a conversation, whole or as a stream."""
    service: Service = request.app.state.service
    fields = await read_fields(request, ChatRequest, service.settings.limits)
    name = service.name(fields.model)
    job = await service.start(fields.ask(service.settings.limits), request)
    reasoning = fields.include_reasoning is not False
    tokenizer = service.engine.tokenizer
    if fields.stream:
        chunks = ChatChunks(job.key, job.created, name, tokenizer, reasoning)
        pieces = _stream(job, chunks, fields)
        return EventStream(pieces, lambda error: event(openai_body(error)), job.close, service.settings)
    await while_connected(request, job.finish())
    answer = ChatAnswer(job.key, job.created, name, tokenizer, reasoning)
    return json_answer(answer.of(job.replies, job.usage))


async def _stream(job: Job, chunks: ChatChunks, fields: ChatRequest) -> AsyncIterator[bytes]:
    options = fields.stream_options
    for index in range(job.prepared.request.n):
        yield event(chunks.first(index))
    async for step in job.steps():
        made = chunks.of(step)
        if options and options.continuous_usage_stats:
            for chunk in made:
                chunk.usage = chunks.usage(job.usage).usage
        if made:
            yield b"".join(map(event, made))
    if options and options.include_usage:
        yield event(chunks.usage(job.usage))
    yield DONE
