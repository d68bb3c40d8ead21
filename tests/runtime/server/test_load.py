"""Many clients at once: nobody is starved, those who leave leave nothing, and HTTP costs little."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sequence import Request
from support import load_client
from support.load_client import body
from support.serving import Served, served

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def wide(nano_artifact: Path) -> Iterator[Served]:
    """A server of 64 slots."""
    options = EngineOptions(slots=64, max_model_len=1024, cache_bytes=0)
    with Engine.open(nano_artifact, threads=1, options=options) as engine, served(engine) as server:
        yield server


def load(server: Served, streams: int, tokens: int) -> dict[str, Any]:
    command = [sys.executable, load_client.__file__, server.url, str(streams), str(tokens)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr[-3000:]
    return json.loads(told.stdout)


def test_sixty_four_streams_share_fairly(wide: Served, record_property: Record) -> None:
    """While all of them run, none gets more than twice the tokens of another. The first is well on its way, by drafts,
    when the last one's prompt has been read."""
    tokens = 800
    streams = load(wide, 64, tokens)["streams"]
    assert all(stream[-1][1] == tokens for stream in streams)
    begin, end = max(stream[0][0] for stream in streams), min(stream[-1][0] for stream in streams)
    shares = [between(stream, begin, end) for stream in streams]
    record_property("tokens_of_a_stream", [min(shares), max(shares)])
    assert min(shares) > 20 and max(shares) / min(shares) <= 2


def between(stream: list[list[float]], begin: float, end: float) -> float:
    """Tokens that came in a span of time."""
    inside = [tokens for at, tokens in stream if begin <= at <= end]
    return inside[-1] - inside[0]


def direct(engine: Engine, streams: int, tokens: int) -> float:
    """Seconds of the same replies from the engine itself."""
    chats = Chats(engine)
    requests = []
    for i in range(streams):
        prompt = chats.prompt(body(i, tokens)["messages"])
        params = replace(engine.defaults, max_new_tokens=tokens, ignore_eos=True, seed=i)
        requests.append(Request(prompt.ids, params, thinking=prompt.thinking))
    began = time.perf_counter()
    for handle in [engine.submit(request) for request in requests]:
        handle.result()
    return time.perf_counter() - began


def test_what_http_adds_to_a_token(wide: Served, record_property: Record) -> None:
    """Eight streams: what the event loop's thread computes for a token, whatever else the machine does; and on the
    clock, over the engine alone, in turns."""
    tokens, engine = 300, wide.service.engine
    pairs, spent = [], []
    for _ in range(3):
        before = wide.loop_seconds()
        pairs.append((direct(engine, 8, tokens), load(wide, 8, tokens)["seconds"]))
        spent.append((wide.loop_seconds() - before) / (8 * tokens))
    on_the_clock = (min(h for _, h in pairs) - min(d for d, _ in pairs)) / tokens
    record_property("milliseconds_of_a_token", 1e3 * min(spent))
    record_property("milliseconds_of_a_step_on_the_clock", 1e3 * on_the_clock)
    assert min(spent) <= 0.001


def test_streams_that_are_left_leave_nothing(server: Served, record_property: Record) -> None:
    async def leave(client: httpx.AsyncClient, i: int) -> None:
        async with client.stream("POST", CHAT, json=body(i, 2000)) as answer:
            lines = answer.aiter_lines()
            for _ in range(i % 4):
                await anext(lines)

    async def all_of_them(count: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            for begin in range(0, count, 20):
                await asyncio.gather(*(leave(client, begin + i) for i in range(20)))

    asyncio.run(all_of_them(200))
    before = settled(server)
    asyncio.run(all_of_them(2000))
    after = settled(server)
    record_property("growth", {name: after[name] - before[name] for name in before})
    assert after["running"] == after["jobs"] == after["waiting"] == 0
    assert after["threads"] <= before["threads"]
    assert after["files"] <= before["files"] + 5
    assert after["handles"] <= before["handles"] + 5


def settled(server: Served) -> dict[str, int]:
    """What the process holds once nothing runs."""
    metrics, deadline = server.service.engine.metrics, time.monotonic() + 30
    while (metrics.running or metrics.waiting or server.service.jobs) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    gc.collect()
    return {
        "running": metrics.running,
        "waiting": metrics.waiting,
        "jobs": len(server.service.jobs),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "handles": sum(type(thing).__name__ in ("Handle", "Job", "Sequence") for thing in gc.get_objects()),
    }
