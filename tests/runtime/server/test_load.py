"""Many clients at once: nobody is starved, those who leave leave nothing, and HTTP costs little."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine
from deltart.runtime.sequence import Request
from support.serving import Served

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
Record = Callable[[str, object], None]


def body(i: int, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f'Type "word{i}" backwards'}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True, "seed": i}


async def read(client: httpx.AsyncClient, i: int, tokens: int) -> tuple[int, float, float]:
    """Tokens of a stream, and when the first and the last came."""
    usage = {"stream_options": {"include_usage": True}}
    first = last = 0.0
    count = 0
    async with client.stream("POST", CHAT, json={**body(i, tokens), **usage}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                last = time.perf_counter()
                first = first or last
                assert '"error"' not in line
                if '"completion_tokens":' in line:
                    count = int(line.split('"completion_tokens":')[1].split(",")[0])
    return count, first, last


def run(server: Served, streams: int, tokens: int) -> list[tuple[int, float, float]]:
    async def together() -> list[tuple[int, float, float]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
            return await asyncio.gather(*(read(client, i, tokens) for i in range(streams)))

    return asyncio.run(together())


def test_sixty_four_streams_share_fairly(server: Served, record_property: Record) -> None:
    """Four slots: streams wait their turn, and while they run they run alike."""
    found = run(server, 64, 100)
    assert all(count == 100 for count, _, _ in found)
    rates = sorted(count / (last - first) for count, first, last in found)
    record_property("tokens_per_second", [rates[0], rates[-1]])
    assert rates[-4] / rates[3] <= 2


def request(engine: Engine, i: int, tokens: int) -> Request:
    """What `body` asks for, as the engine takes it."""
    params = replace(engine.defaults, max_new_tokens=tokens, ignore_eos=True, seed=i)
    prompt = Chats(engine).prompt(body(i, tokens)["messages"])
    return Request(prompt.ids, params, thinking=prompt.thinking)


def test_what_http_adds_to_a_token(server: Served, engine: Engine, record_property: Record) -> None:
    """The same four replies from the engine itself and over HTTP, in turns; the difference of the best of each."""

    def direct(tokens: int) -> float:
        began = time.perf_counter()
        handles = [engine.submit(request(engine, i, tokens)) for i in range(4)]
        for handle in handles:
            handle.result()
        return time.perf_counter() - began

    def http(tokens: int) -> float:
        began = time.perf_counter()
        run(server, 4, tokens)
        return time.perf_counter() - began

    tokens = 400
    pairs = [(direct(tokens), http(tokens)) for _ in range(5)]
    added = (min(h for _, h in pairs) - min(d for d, _ in pairs)) / tokens
    record_property("milliseconds_per_token", 1e3 * added)
    assert added < 0.001 * 4  # seconds a step of four tokens, on a machine that others use too


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
