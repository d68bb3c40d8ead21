"""`deltart serve` as a process, and many requests to it at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from bench.runtime import NANO
from deltart.export.pipeline import export_checkpoint

MODEL = "nano"
CHAT = "/v1/chat/completions"
Case = TypeVar("Case")
Outcome = TypeVar("Outcome")


@contextmanager
def serving(artifact: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """A server of `artifact`: its address and process id."""
    command = [sys.executable, "-m", "deltart", "serve", str(artifact), "--port", "0", "--served-model-name", MODEL]
    server = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready = re.search(r"at (http://\S+)", server.stdout.readline())
        if ready is None:
            raise RuntimeError("the server did not start; its log says why")
        yield ready[1], server.pid
    finally:
        server.terminate()
        server.wait(30)


def exported(artifact: Path | None, folder: Path) -> Path:
    """`artifact`, or the built-in checkpoint exported into `folder`."""
    if artifact is None:
        artifact = folder / MODEL
        export_checkpoint(NANO, artifact)
    return artifact


def asked(
    address: str, cases: Sequence[Case], ask: Callable[[httpx.Client, Case], Outcome], streams: int = 8
) -> list[Outcome]:
    """What `ask` finds for each case, so many at once; progress on stderr."""
    with httpx.Client(base_url=address, timeout=300) as client, ThreadPoolExecutor(streams) as pool:
        found: list[Outcome] = []
        for outcome in pool.map(lambda case: ask(client, case), cases):
            found.append(outcome)
            if len(found) % 50 == 0:
                print(f"{len(found)} of {len(cases)}", file=sys.stderr, flush=True)
        return found


def tokens_of(address: str, text: str) -> list[int]:
    """The server's tokens of a text."""
    asked = {"prompt": text, "add_special_tokens": False}
    found: list[int] = httpx.post(f"{address}/tokenize", json=asked).json()["tokens"]
    return found


def refusal(answer: httpx.Response) -> str:
    """The status of an answer that is an error, and what it is about."""
    error: dict[str, Any] = answer.json()["error"]
    return f"{answer.status_code} {error['message']}"
