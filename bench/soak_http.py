"""A server under random load for a while: `deltart serve` as a process, its memory, threads and files.

    python -m bench.soak_http [--minutes 10] [--artifact DIR] [--json FILE]

Clients stream, wait, vanish in the middle, call tools, ask for JSON and send nonsense. Exit code 1 where the server's
memory grows by more than 2 % after the warm-up, threads or open files are left beyond a pool, it answers with a 5xx, or
takes over 2 s to end.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bench.runtime import HELDOUT
from bench.soak import DRIFT, drift, measured

CLIENTS = 12
POOL = 8  # threads that stay for the next request, and their files
FLAGS = ("--port", "0", "--slots", "6", "--max-model-len", "2048", "--threads", "1", "--cache-mb", "60")


class Clients:
    """Threads that ask at random until told to stop."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._asked = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
        self.stop = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(CLIENTS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Stop, and wait for every client to see the end."""
        self.stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stop.is_set():
            with httpx.Client(base_url=self._address, timeout=60) as client:
                for _ in range(rng.randrange(1, 30)):
                    if not self.stop.is_set():
                        self.outcomes[self._one(client, rng)] += 1

    def _one(self, client: httpx.Client, rng: random.Random) -> str:
        asked = rng.choice(self._asked)
        body: dict[str, Any] = {
            "model": "nano", "messages": asked["messages"], "max_tokens": rng.choice([5, 40, 200]),
            "temperature": rng.choice([0, 1]), "seed": rng.randrange(2**31), "n": rng.choice([1, 1, 1, 3]),
        }  # fmt: skip
        if asked.get("tools"):
            body["tools"] = asked["tools"]
        elif rng.random() < 0.1:
            body["response_format"] = {"type": "json_object"}
        if rng.random() < 0.05:
            body["temperature"] = "hot"
        if rng.random() < 0.5:
            answer = client.post("/v1/chat/completions", json=body)
            return str(answer.status_code)
        vanish = rng.random() < 0.3
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as stream:
            for number, _ in enumerate(stream.iter_lines()):
                if vanish and number > 6:
                    return "vanished"
            return f"stream {stream.status_code}"


def state(process: int) -> dict[str, int]:
    """Of a process: resident bytes without mapped files, threads and open files."""
    folder = Path("/proc") / str(process)
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return {
        "bytes": int(fields["RssAnon"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "files": len(os.listdir(folder / "fd")),
    }


def soak(artifact: Path, minutes: float) -> dict[str, Any]:
    """The figures of one run."""
    command = [sys.executable, "-m", "deltart", "serve", str(artifact), *FLAGS, "--served-model-name", "nano"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    ready = re.search(r"at (http://\S+)", server.stdout.readline())
    assert ready, "the server did not start"
    clients = Clients(ready[1])
    idle = state(server.pid)
    clients.start()
    began, samples = time.monotonic(), list[tuple[float, int]]()
    while time.monotonic() - began < minutes * 60:
        time.sleep(1)
        samples.append((time.monotonic() - began, state(server.pid)["bytes"]))
        if len(samples) % 60 == 0:
            print(f"{samples[-1][0]:5.0f} s  {samples[-1][1] / 1e6:7.1f} MB  {dict(clients.outcomes)}", flush=True)
    clients.join()
    time.sleep(3)
    after = state(server.pid)
    closing = time.monotonic()
    server.terminate()
    code = server.wait(30)
    return {
        **drift(samples, minutes),
        "left": {name: after[name] - idle[name] for name in ("threads", "files")},
        "close_seconds": round(time.monotonic() - closing, 2),
        "exit": code,
        "outcomes": dict(clients.outcomes),
    }


def main() -> int:
    """Run it."""
    found = measured(__doc__ or "", 10, soak)
    failed = any(name.removeprefix("stream ").startswith("5") for name in found["outcomes"])
    grown = found["drift"] > DRIFT or any(count > POOL for count in found["left"].values())
    return int(failed or grown or found["close_seconds"] > 2 or found["exit"] != 0)


if __name__ == "__main__":
    raise SystemExit(main())
