"""Streams from a server, in a process of its own: python load_client.py URL STREAMS TOKENS

Prints JSON: for each stream (seconds, tokens so far) at each event, and the seconds of all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import httpx


def body(i: int, tokens: int) -> dict[str, Any]:
    """A request for so many tokens, all streams' prompts being different."""
    messages = [{"role": "user", "content": f'Type "word{i}" backwards'}]
    ends = {"max_tokens": tokens, "ignore_eos": True, "seed": i}
    return {"messages": messages, **ends, "stream": True, "stream_options": {"continuous_usage_stats": True}}


async def read(client: httpx.AsyncClient, i: int, tokens: int) -> list[tuple[float, int]]:
    """When how many tokens had come."""
    found: list[tuple[float, int]] = []
    async with client.stream("POST", "/v1/chat/completions", json=body(i, tokens)) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            assert '"error"' not in line, line
            if '"usage":{' in line:
                found.append((time.perf_counter(), json.loads(line[5:])["usage"]["completion_tokens"]))
    return found


async def main(url: str, streams: int, tokens: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await client.get("/health")
        began = time.perf_counter()
        found = await asyncio.gather(*(read(client, i, tokens) for i in range(streams)))
        return {"streams": found, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
