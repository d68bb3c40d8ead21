"""OpenTelemetry spans, one for each request, where a collector is configured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from deltart.errors import MissingDependencyError
from deltart.runtime.server.job import Job

_NANO = 1_000_000_000


class Traces:
    """Sends spans to a collector in the background.

    Args:
        endpoint: URL of OTLP over HTTP, such as http://localhost:4318/v1/traces.

    Raises:
        MissingDependencyError: OpenTelemetry's packages are not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{error.name} is not installed", "what traces need", "pip install 'deltart[trace]'"
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "deltart"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("deltart.server")
        self._context = TraceContextTextMapPropagator()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def record(
        self,
        method: str,
        route: str,
        headers: Mapping[str, str],
        seconds: float,
        status: int,
        model: str,
        jobs: list[Job],
    ) -> None:
        """The span of a request that has just ended; it belongs to the trace that its `traceparent` header names."""
        ended = time.time_ns()
        http = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._context.extract(dict(headers)),
            kind=self._kind,
            start_time=ended - round(seconds * _NANO),
            attributes={**http, **_attributes(route, model, jobs)},
        )
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(self._failed)
        span.end(ended)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _attributes(route: str, model: str, jobs: list[Job]) -> dict[str, Any]:
    """Attributes by OpenTelemetry's conventions for generative models."""
    if not jobs:
        return {}
    usage, params = jobs[0].usage, jobs[0].prepared.request.params
    return {
        "gen_ai.operation.name": "text_completion" if route == "/v1/completions" else "chat",
        "gen_ai.provider.name": "deltart",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.response.id": jobs[0].key,
        "gen_ai.response.finish_reasons": [str(reply.reason) for job in jobs for reply in job.replies],
        "gen_ai.usage.input_tokens": sum(job.usage.prompt_tokens for job in jobs),
        "gen_ai.usage.output_tokens": sum(job.usage.completion_tokens for job in jobs),
        "gen_ai.latency.time_in_queue": usage.queue_seconds,
        "gen_ai.latency.time_to_first_token": usage.first_token_seconds,
        "gen_ai.latency.e2e": usage.total_seconds,
    }
