"""Spans of requests, sent by OpenTelemetry's exporter and decoded by its own protocol package."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_process import ROOT, serving

pytestmark = pytest.mark.clients
RECEIVER = Path(__file__).parent / "scripts" / "otlp_receiver.py"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"messages": [{"role": "user", "content": "Paris"}], "max_tokens": 8, "temperature": 0.5}
SERVER, ERROR = 2, 2  # of SpanKind and StatusCode in the protocol


@pytest.fixture(scope="module")
def python(installed: Path) -> Path:
    """Of an environment with OpenTelemetry's packages."""
    if not (installed / "otel" / ".ready").exists():
        pytest.skip(f"otel is not installed (tests/clients/install.sh {installed} otel)")
    return installed / "otel" / "bin" / "python"


@contextmanager
def receiver(python: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A receiver, whose output holds the spans, and its address."""
    process = subprocess.Popen([python, RECEIVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}/v1/traces"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def with_otel(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds OpenTelemetry's packages."""
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.check_output([python, "-c", purelib], text=True).strip()
    monkeypatch.setenv("DELTART_TEST_PATH", os.pathsep.join((str(ROOT), folder)))


def test_a_span_for_each_request(python: Path, with_otel: None, nano_artifact: Path) -> None:
    with receiver(python) as (process, endpoint):
        with serving(nano_artifact, "--otlp-traces-endpoint", endpoint) as address:
            began = time.time_ns()
            parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert httpx.post(f"{address}/v1/chat/completions", json=CHAT, headers=parent).status_code == 200
            streamed = httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "stream": True, "n": 2})
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert (
                httpx.post(f"{address}/v1/completions", json={"prompt": ["a", "b"], "ignore_eos": True}).status_code
                == 200
            )
            assert httpx.post(f"{address}/v1/chat/completions", json={"messages": 3}).status_code == 400
            assert httpx.get(f"{address}/nowhere/secret").status_code == 404
            ended = time.time_ns()
        process.terminate()
        assert process.stdout is not None
        spans = [json.loads(line) for line in process.stdout]
    whole, streamed_span, text, refused, lost = spans
    assert all(span["service"] == "deltart" and span["kind"] == SERVER for span in spans)
    assert all(began <= span["began"] <= span["ended"] <= ended and span["status"] != ERROR for span in spans)
    assert (whole["trace"], whole["parent"]) == (TRACE, PARENT) and whole["name"] == "POST /v1/chat/completions"
    assert len({span["trace"] for span in spans}) == 5 and not any(span["parent"] for span in spans[1:])
    assert told(whole) == (200, "chat", 8, ["length"]) and whole["attributes"]["gen_ai.request.temperature"] == 0.5
    assert told(streamed_span) == (200, "chat", 16, ["length"] * 2)
    assert told(text) == (200, "text_completion", 32, ["length"] * 2)
    assert told(refused) == (400, None, None, None) and told(lost) == (404, None, None, None)
    assert "secret" not in json.dumps(spans) and lost["attributes"]["http.route"] == "none"
    waited = whole["attributes"]["gen_ai.latency.time_to_first_token"]
    assert 0 < waited <= whole["attributes"]["gen_ai.latency.e2e"] <= (whole["ended"] - whole["began"]) / 1e9


def told(span: dict[str, Any]) -> tuple[Any, ...]:
    """Status, operation, tokens of the replies and why they ended."""
    names = "http.response.status_code", "gen_ai.operation.name", "gen_ai.usage.output_tokens"
    return (*map(span["attributes"].get, names), span["attributes"].get("gen_ai.response.finish_reasons"))


def test_nobody_waits_for_a_collector_that_is_not_there(with_otel: None, nano_artifact: Path) -> None:
    with serving(nano_artifact, "--otlp-traces-endpoint", "http://127.0.0.1:9/v1/traces") as address:
        for _ in range(3):
            began = time.monotonic()
            assert httpx.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 200
            assert time.monotonic() - began < 5
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 10
