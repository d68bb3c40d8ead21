"""An artifact as a worker of NVIDIA Dynamo: python tools/serving/dynamo_worker.py DIR NAME

Dynamo's front end (`python -m dynamo.frontend`) takes the connections and picks a worker; the worker is the engine and
the chat API's own types. DIR holds the checkpoint's tokenizer and configs too, which the front end reads.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import uvloop
from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime, dynamo_worker

from deltart.runtime.engine import Engine
from deltart.runtime.server.body import convert
from deltart.runtime.server.chat.reply import ChatChunks, ChatCompletion
from deltart.runtime.server.chat.request import ChatRequest
from deltart.runtime.server.service import Service
from deltart.runtime.server.settings import Settings


@dynamo_worker()
async def worker(runtime: DistributedRuntime, folder: str, name: str) -> None:
    """Registers the model and serves it until the runtime ends."""
    service = Service(Engine.open(folder), Settings((name,)))

    async def generate(body: dict[str, Any], context: Any = None) -> AsyncIterator[dict[str, Any]]:
        job = await service.start(convert(body, ChatRequest).ask(service.settings.limits))
        chunks = ChatChunks(job.key, job.created, name, service.engine.tokenizer)
        try:
            yield plain(chunks.first(0))
            async for step in job.steps():
                for chunk in chunks.of(step):
                    yield plain(chunk)
            yield plain(chunks.usage(job.usage))
        finally:
            job.close()

    endpoint = runtime.endpoint("deltart.backend.generate")
    kind = WorkerType.Aggregated
    await register_model(ModelInput.Text, ModelType.Chat, endpoint, folder, name, worker_type=kind)
    await endpoint.serve_endpoint(generate)


def plain(chunk: ChatCompletion) -> dict[str, Any]:
    """The chunk as Dynamo's front end reads it: reasoning under one name only."""
    body: dict[str, Any] = msgspec.to_builtins(chunk)
    for choice in body["choices"]:
        choice["delta"].pop("reasoning", None)
    return body


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(worker(*sys.argv[1:]))
