"""`deltart bench URL` against our own server over the built-in model, and against one that misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from deltart.cli import main
from deltart.errors import BenchError
from deltart.latency import workload
from deltart.latency.endpoint import Answer, Endpoint
from deltart.latency.sweep import Limits, summed
from deltart.latency.workload import WORKLOADS, Prompt, chat, long_context
from deltart.runtime.engine import Engine, EngineOptions
from support.serving import served

HELLO = Prompt(({"role": "user", "content": "Hello"},))


@pytest.fixture(scope="module")
def url(nano_artifact: Path) -> Iterator[str]:
    options = EngineOptions(slots=4, max_model_len=8192)
    with Engine.open(nano_artifact, threads=1, options=options) as engine, served(engine) as server:
        yield server.url


def test_a_sweep(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every reply has the tokens that were asked for, whatever pieces they came in; the system prompt is kept."""
    monkeypatch.setattr(workload, "SYSTEM_WORDS", 30)
    monkeypatch.setattr(workload, "TURN_WORDS", (3, 8))
    options = ["--concurrency", "1", "3", "--requests", "4", "--workload", "chat", "--max-tokens", "12"]
    assert main(["bench", f"{url}/v1", *options, "--json"]) == 0
    (one, three) = json.loads(capsys.readouterr().out.splitlines()[-1])["levels"]["chat"]
    assert (one["answered"], three["answered"]) == (4, 9)
    for level in (one, three):
        assert level["errors"] == {}
        assert level["rate"] == pytest.approx(12 * level["requests"])
        assert level["single_gaps"] is not None
        assert 0 < level["first"][0] <= level["total"][0]
    assert three["cached"] > 0.3
    assert main(["bench", url, *options[3:], "--concurrency", "1"]) == 0
    assert "good/s" in capsys.readouterr().out


def test_tokens_are_counted_by_the_server(url: str) -> None:
    answer = Endpoint(url).ask(HELLO, 20, seed=1)
    assert (answer.error, answer.tokens) == ("", 20)
    assert answer.counted and len(answer.gaps) == 20 - answer.early
    assert sum(answer.gaps) == pytest.approx(answer.last - answer.first)
    assert answer.gap == pytest.approx(sum(answer.gaps) / len(answer.gaps))
    assert answer.first <= answer.last <= answer.total


class Lumpy(BaseHTTPRequestHandler):
    """Ten tokens in two pieces, counted at the end alone, as most servers do."""

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = asked["messages"][-1]["content"]
        if content == "refuse":
            self.send_error(429)
            return
        self.send_response(200)
        self.end_headers()
        events: list[object] = [{"choices": [{"delta": {"content": text}}]} for text in ("five words ", "and five")]
        events += [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 10}}]
        if content == "silent":
            events = events[:2]
        for event in events:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture(scope="module")
def lumpy() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lumpy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_server_that_counts_at_the_end(lumpy: str) -> None:
    """Its pieces are no tokens: the mean gap is over the ten that it counted, and single gaps are not known."""
    answer = Endpoint(lumpy, "m").ask(HELLO, 10, seed=0)
    assert (answer.tokens, answer.prompt_tokens, answer.gaps) == (10, 7, [])
    assert answer.gap == pytest.approx((answer.last - answer.first) / 9)
    assert answer.last >= answer.first + 0.03
    assert summed(1, [answer], 1.0, Limits(1, 1)).single_gaps is None


@pytest.mark.parametrize(("content", "error"), [("refuse", "HTTP 429"), ("silent", "counted no tokens")])
def test_what_goes_wrong_is_counted(lumpy: str, content: str, error: str) -> None:
    answer = Endpoint(lumpy, "m").ask(Prompt(({"role": "user", "content": content},)), 10, seed=0)
    assert error in answer.error
    level = summed(1, [answer], 1.0, Limits(1, 1))
    assert (level.answered, level.goodput, sum(level.errors.values())) == (0, 0.0, 1)


def test_goodput() -> None:
    fast, slow_start, slow = (
        Answer(first, last, last, tokens=11) for first, last in ((0.1, 0.6), (2.0, 2.5), (0.1, 3.0))
    )
    level = summed(2, [fast, slow_start, slow], 2.0, Limits(first=0.5, gap=0.1))
    assert (level.requests, level.goodput) == (1.5, 0.5)


def test_no_server_is_an_error() -> None:
    with pytest.raises(BenchError, match="does not answer"):
        Endpoint("http://127.0.0.1:9/v1")
    assert main(["bench", "http://127.0.0.1:9"]) == 2


def test_workloads_follow_from_their_seed() -> None:
    for make in WORKLOADS.values():
        assert make(3, 5) == make(3, 5) != make(4, 5)
    chats = chat(0, 8)
    assert len({prompt.messages[0]["content"] for prompt in chats}) == 1
    assert len({prompt.messages[1]["content"] for prompt in chats}) == 8
    texts = [prompt.messages[0]["content"] for prompt in long_context(0, 4, 100)]
    assert len({text[:20] for text in texts}) == 4
