"""POST /v1/responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.body import read_fields
from deltart.runtime.server.job import Job
from deltart.runtime.server.responses.reply import ResponseWriter
from deltart.runtime.server.responses.request import ResponsesRequest
from deltart.runtime.server.service import Service
from deltart.runtime.server.stream import EventStream, while_connected
from deltart.runtime.server.writers import named, whole


async def responses(request: Request) -> Response:
    """A reply as output items, whole or as named events."""
    service: Service = request.app.state.service
    fields = await read_fields(request, ResponsesRequest, service.settings.limits)
    name = service.name(fields.model)
    job = await service.start(fields.ask(service.settings.limits), request)
    sealed = "reasoning.encrypted_content" in (fields.include or [])
    writer = ResponseWriter(_body(fields, job, name), service.engine.tokenizer, sealed)
    if not fields.stream:
        return json_answer(await while_connected(request, whole(job, writer)))
    pieces = _stream(job, writer)
    return EventStream(pieces, lambda error: named(writer.failed(error.message)), job.close, service.settings)


async def _stream(job: Job, writer: ResponseWriter) -> AsyncIterator[bytes]:
    yield named(*writer.begin())
    async for step in job.steps():
        events = writer.add(step)
        if events:
            yield named(*events)
    yield named(*writer.end(job.usage))


def _body(fields: ResponsesRequest, job: Job, name: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    params = job.prepared.request.params
    return {
        "id": f"resp_{job.key}",
        "object": "response",
        "created_at": job.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": fields.metadata or {},
        "model": name,
        "output": [],
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": fields.reasoning.effort if fields.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": params.temperature,
        "text": {"format": (fields.text.format if fields.text else None) or {"type": "text"}},
        "tool_choice": fields.tool_choice or "auto",
        "tools": fields.tools or [],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "usage": None,
    }
