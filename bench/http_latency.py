"""What HTTP adds to a token: gaps between a reply's tokens from `deltart serve`, and from the engine alone.

    python -m bench.http_latency [--artifact DIR] [--rounds 9] [--json FILE]

Server and engine are processes of their own with equal options, and are asked the same in turns (A B B A), without
drafts, with one and with eight streams. A stream's gap is the time from its first text to its end, over the tokens
between. The client reads sockets and no more. Figures are the medians and minima over the rounds, of the mean gap of
the streams of a round, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

from bench.suites.serving import CHAT, MODEL, exported, serving
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sequence import Request

TOKENS, SLOTS, CONTEXT = 300, 8, 2048


def body(number: int) -> dict[str, Any]:
    """A request of TOKENS tokens; each stream's prompt is its own."""
    messages = [{"role": "user", "content": f'Type "word{number}" backwards'}]
    return {"messages": messages, "max_tokens": TOKENS, "ignore_eos": True, "seed": number}


class Times:
    """When a stream's first text came, and its end."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def told(self) -> None:
        """Text came."""
        self.last = perf_counter()
        self.first = self.first or self.last

    @property
    def gap(self) -> float:
        """Milliseconds a token."""
        return 1e3 * (self.last - self.first) / (TOKENS - 1)


async def _read(host: str, port: int, number: int, times: Times) -> None:
    data = json.dumps({**body(number), "model": MODEL, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    begun = False
    while True:
        piece = await reader.read(65536)
        if not piece:
            raise RuntimeError("the server closed a stream")
        begun = begun or b"reasoning_content" in piece or b'"content":"' in piece.partition(b'"content":""')[2]
        if begun:
            times.told()
        if b"[DONE]" in piece:
            break
    writer.close()


async def over_http(address: str, streams: int) -> float:
    """The mean gap of so many streams of the server."""
    host, _, port = address.removeprefix("http://").partition(":")
    times = [Times() for _ in range(streams)]
    await asyncio.gather(*(_read(host, int(port), number, times[number]) for number in range(streams)))
    return mean(one.gap for one in times)


def from_engine(engine: Engine, streams: int) -> float:
    """The mean gap of the same replies from the engine itself, each read by a thread."""
    chats = Chats(engine)
    requests = []
    for number in range(streams):
        asked = body(number)
        prompt = chats.prompt(asked["messages"])
        params = replace(engine.defaults, max_new_tokens=TOKENS, ignore_eos=True, seed=number)
        requests.append(Request(prompt.ids, params, thinking=prompt.thinking))
    times = [Times() for _ in range(streams)]

    def read(number: int) -> None:
        for delta in engine.submit(requests[number]):
            if delta.text or delta.finish_reason:
                times[number].told()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return mean(one.gap for one in times)


def engine_process(artifact: str) -> None:
    """Answers each number of streams on stdin with their mean gap."""
    options = EngineOptions(slots=SLOTS, max_model_len=CONTEXT, draft_tokens=0)
    with Engine.open(Path(artifact), threads=1, options=options) as engine:
        print("ready", flush=True)
        for line in sys.stdin:
            print(from_engine(engine, int(line)), flush=True)


class EngineArm:
    """The engine alone, in a process of its own."""

    def __init__(self, artifact: Path) -> None:
        command = [sys.executable, "-c", f"from bench.http_latency import engine_process as e; e({str(artifact)!r})"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def gap(self, streams: int) -> float:
        """The mean gap of so many streams."""
        assert self._process.stdin is not None
        print(streams, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def measured(artifact: Path, rounds: int) -> dict[str, Any]:
    """The figures, by number of streams."""
    flags = ("--slots", str(SLOTS), "--max-model-len", str(CONTEXT), "--threads", "1", "--draft-tokens", "0")
    engine = EngineArm(artifact)
    found: dict[str, Any] = {}
    with serving(artifact, *flags) as (address, _):
        for streams in (1, SLOTS):
            http, alone = list[float](), list[float]()
            for turn in range(rounds + 1):
                first = turn % 2 == 0
                for over in (first, not first):
                    gap = asyncio.run(over_http(address, streams)) if over else engine.gap(streams)
                    if turn:  # the first warms up
                        (http if over else alone).append(gap)
            found[str(streams)] = _summary(http, alone)
    engine.close()
    return {**found, "load_before": LOAD, "rounds": rounds, "tokens": TOKENS}


def _summary(http: list[float], alone: list[float]) -> dict[str, Any]:
    pairs = [over - without for over, without in zip(http, alone, strict=True)]
    return {
        "http": {"median": round(median(http), 3), "min": round(min(http), 3)},
        "engine": {"median": round(median(alone), 3), "min": round(min(alone), 3)},
        "added": {
            "median_of_pairs": round(median(pairs), 3),
            "of_medians": round(median(http) - median(alone), 3),
            "of_minima": round(min(http) - min(alone), 3),
        },
    }


LOAD = round(os.getloadavg()[0], 2)


def main() -> int:
    """Run it; 1 where eight streams pay over a millisecond a token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(exported(options.artifact, Path(folder)), options.rounds)
    print(json.dumps(found, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(found[str(SLOTS)]["added"]["median_of_pairs"] > 1)


if __name__ == "__main__":
    raise SystemExit(main())
