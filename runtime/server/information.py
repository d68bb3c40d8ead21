"""GET routes that say what is served and how it fares."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from deltart.runtime.server.answers import json_answer
from deltart.runtime.server.service import Service
from deltart.version import __version__


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service: Service = request.app.state.service
    return json_answer({"object": "list", "data": [_card(service, name) for name in service.settings.names]})


async def model(request: Request) -> Response:
    """GET /v1/models/{name}."""
    service: Service = request.app.state.service
    return json_answer(_card(service, service.name(request.path_params["name"])))


async def health(request: Request) -> Response:
    """GET /health and /health/ready: 200 while requests are taken, else 503."""
    service: Service = request.app.state.service
    service.check_open()
    return json_answer({"status": "ok"})


async def live(request: Request) -> Response:
    """GET /health/live: 200 as long as the process answers."""
    return json_answer({"status": "ok"})


async def version(request: Request) -> Response:
    """GET /version."""
    return json_answer({"version": __version__})


async def metrics(request: Request) -> Response:
    """GET /metrics, in Prometheus' text format."""
    service: Service = request.app.state.service
    body, media_type = service.metrics.exposition(request.headers.get("accept", ""))
    return Response(body, media_type=media_type)


async def model_info(request: Request) -> Response:
    """GET /model_info, in SGLang's words, for routers."""
    service: Service = request.app.state.service
    name = service.settings.names[0]
    return json_answer(
        {"model_path": name, "tokenizer_path": name, "served_model_name": name, "is_generation": True}
        | {"max_context_length": service.engine.max_context, "architecture": service.engine.manifest.architecture}
        | {"has_image_understanding": service.engine.sees}
    )


async def server_info(request: Request) -> Response:
    """GET /server_info, in SGLang's words, for routers and benchmarks."""
    service: Service = request.app.state.service
    counts = service.engine.metrics
    return json_answer(
        {
            "version": __version__,
            "served_model_name": service.settings.names[0],
            "model_path": service.settings.names[0],
            "context_length": service.engine.max_context,
            "max_running_requests": service.engine.options.slots,
            "num_running_reqs": counts.running,
            "num_waiting_reqs": counts.waiting,
            "draining": service.draining,
        }
    )


def _card(service: Service, name: str) -> dict[str, Any]:
    first = service.settings.names[0]
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "deltart",
        "root": first,
        "parent": None if name == first else first,
        "max_model_len": service.engine.max_context,
    }
