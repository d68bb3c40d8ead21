"""Prometheus metrics, under vLLM's names where the meaning is equal, so that its dashboards and routers work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from deltart.runtime.engine import Engine
from deltart.runtime.metrics import EndEvent, TokenEvent
from deltart.runtime.server.job import Job

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)  # s
_LONG = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
_TOKENS = tuple(base * 10**power for power in range(5) for base in (1, 2, 5))  # to 50,000

_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token", _LONG),
    "inter_token_latency_seconds": ("Between tokens of one reply", _SHORT),
    "e2e_request_latency_seconds": ("From a request's arrival to its end", _LONG),
    "request_queue_time_seconds": ("A request's wait for a slot", _LONG),
    "request_prompt_tokens": ("Tokens of a request's prompt", _TOKENS),
    "request_generation_tokens": ("Tokens of a request's replies", _TOKENS),
    "request_params_n": ("Replies that a request asks for", (1, 2, 5, 10, 20, 50, 100)),
}


class Metrics:
    """Metrics of one server over one engine.

    Args:
        engine: read when the metrics are.
        model_name: of the label that all of them have.
    """

    def __init__(self, engine: Engine, model_name: str) -> None:
        labels = {"model_name": model_name, "engine": "0"}
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine, labels))
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, labels, registry=self._registry, buckets=buckets).labels(**labels)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        name, text = "deltart:structure_compile_seconds", "Compiling a request's schema, grammar or tools"
        self._structures = Histogram(name, text, registry=self._registry, buckets=_SHORT)
        self._answers = Counter(
            "deltart:http_answers", "Answers by route and status", ("route", "status"), registry=self._registry
        )
        engine.metrics.listeners.append(self._heard)

    def finished(self, job: Job) -> None:
        """Counts a request that is over."""
        usage = job.usage
        self._histograms["e2e_request_latency_seconds"].observe(usage.total_seconds)
        self._histograms["request_queue_time_seconds"].observe(usage.queue_seconds)
        self._histograms["request_prompt_tokens"].observe(usage.prompt_tokens)
        self._histograms["request_generation_tokens"].observe(usage.completion_tokens)
        self._histograms["request_params_n"].observe(job.prepared.request.n)
        if job.prepared.structure_seconds is not None:
            self._structures.observe(job.prepared.structure_seconds)

    def answered(self, route: str, status: int) -> None:
        """Counts an answer."""
        self._answers.labels(route, str(status)).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the text format that `accept` asks for, and its media type."""
        encoder, media_type = choose_encoder(accept)
        encode: Callable[[CollectorRegistry], bytes] = encoder
        return encode(self._registry), media_type

    def _heard(self, event: TokenEvent | EndEvent) -> None:
        if not isinstance(event, TokenEvent):
            return
        if event.first:
            self._histograms["time_to_first_token_seconds"].observe(event.seconds)
            return
        for _ in range(event.tokens):
            self._histograms["inter_token_latency_seconds"].observe(event.seconds / event.tokens)


class _EngineCollector(Collector):
    """Gauges and counters that the engine keeps, read at scrape time."""

    def __init__(self, engine: Engine, labels: Mapping[str, str]) -> None:
        self._engine, self._labels = engine, labels

    def collect(self) -> Iterable[Metric]:
        """One family for each figure."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._speculation()

    def _gauges(self) -> Iterator[Metric]:
        figures, plan = self._engine.metrics, self._engine.plan
        cache = figures.cache
        used = figures.tokens_held / plan.tokens if plan.tokens else 0.0
        yield self._gauge("vllm:num_requests_running", "Replies that have a slot", figures.running)
        yield self._gauge("vllm:num_requests_waiting", "Replies that wait for a slot", figures.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the tokens that slots may hold", used)
        yield self._gauge("deltart:slots", "Replies at once", self._engine.options.slots)
        yield self._gauge("deltart:kv_tokens", "Tokens that slots hold", figures.tokens_held)
        yield self._gauge("deltart:prefix_cache_snapshots", "Prefixes kept", len(cache) if cache is not None else 0)
        yield self._gauge("deltart:prefix_cache_bytes", "Bytes of kept prefixes", cache.nbytes if cache else 0)

    def _counters(self) -> Iterator[Metric]:
        figures = self._engine.metrics
        totals = figures.scheduler.counters
        yield self._counter("vllm:prompt_tokens", "Prompt tokens read", totals.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated", totals.generated_tokens)
        yield self._counter("vllm:num_preemptions", "Replies parked for want of memory", totals.preemptions)
        if figures.cache is not None:
            cached = figures.cache.statistics
            yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up", cached.queried_tokens)
            yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found", cached.hit_tokens)
            yield self._by("deltart:prefix_cache_hits_by_place", "Hits by kind of place", "place", cached.hits)
        yield self._by("vllm:request_success", "Replies by reason of their end", "finished_reason", figures.finished)

    def _speculation(self) -> Iterator[Metric]:
        drafts = self._engine.metrics.drafts
        if not drafts.largest:
            return
        places = {str(i): count for i, count in enumerate(drafts.accepted)}
        yield self._counter("vllm:spec_decode_num_drafts", "Rows that fed drafts", drafts.drafted[0])
        yield self._counter("vllm:spec_decode_num_draft_tokens", "Drafts judged", sum(drafts.drafted))
        yield self._counter("vllm:spec_decode_num_accepted_tokens", "Drafts accepted", sum(drafts.accepted))
        name = "vllm:spec_decode_num_accepted_tokens_per_pos"
        yield self._by(name, "Drafts accepted by their place", "position", places)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _by(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[*self._labels, label])
        for key, value in tuple(values.items()):
            family.add_metric([*self._labels.values(), str(key)], value)
        return family
