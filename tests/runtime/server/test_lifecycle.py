"""`deltart serve` as a process: ready, draining on SIGTERM, gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.sse import chat_message, events

ROOT = Path(__file__).resolve().parents[3]
LONG = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": 400}


@contextmanager
def serving(artifact: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address of its ready line."""
    command = [sys.executable, "-m", "deltart", "serve", str(artifact), "--port", "0", "--threads", "1", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        ready = re.search(r"serving (\S+) at (http://\S+)", process.stdout.readline())
        assert ready, process.communicate(timeout=10)[1]
        yield process, ready[2]
    finally:
        process.kill()
        process.communicate()


def ask(url: str, answers: list[Any], **fields: Any) -> None:
    try:
        answers.append(httpx.post(f"{url}/v1/chat/completions", json={**LONG, **fields}, timeout=60))
    except httpx.HTTPError as error:
        answers.append(error)


def test_replies_under_way_are_finished_after_sigterm(nano_artifact: Path) -> None:
    with serving(nano_artifact, "--slots", "4", "--served-model-name", "a", "b") as (process, url):
        answers: list[Any] = []
        asking = [threading.Thread(target=ask, args=(url, answers), kwargs={"stream": i % 2 == 0}) for i in range(8)]
        for thread in asking:
            thread.start()
        with httpx.Client(base_url=url) as idle:
            assert [m["id"] for m in idle.get("/v1/models").json()["data"]] == ["a", "b"]
            wait_for(lambda: running(idle) == 4 and idle.get("/server_info").json()["num_waiting_reqs"] == 4)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: idle.get("/health").status_code == 503)
            assert idle.get("/health/live").status_code == 200
            refused = idle.post("/v1/chat/completions", json=LONG)
            assert refused.status_code == 503 and refused.headers["retry-after"]
        for thread in asking:
            thread.join()
        assert process.wait(30) == 0
        assert [answer.status_code for answer in answers] == [200] * 8
        for answer in answers:
            streamed = answer.headers["content-type"].startswith("text/event-stream")
            reason = chat_message(events(answer.text)) if streamed else answer.json()["choices"][0]
            assert reason["finish_reason"] == "length"


def test_replies_are_cut_at_the_deadline(nano_artifact: Path) -> None:
    with serving(nano_artifact, "--drain-seconds", "0.3", "--max-model-len", "100000") as (process, url):
        answers: list[Any] = []
        kinds: list[Any] = [{"stream": True}, {}]
        asking = [threading.Thread(target=ask, args=(url, answers), kwargs={"max_tokens": 90_000, **k}) for k in kinds]
        for thread in asking:
            thread.start()
        with httpx.Client(base_url=url) as idle:
            wait_for(lambda: running(idle) == 2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 10
        for thread in asking:
            thread.join()
        streamed = next(a for a in answers if a.headers["content-type"].startswith("text/event-stream"))
        assert events(streamed.text)[-1]["error"]["type"] == "service_unavailable_error"
        assert sorted(answer.status_code for answer in answers) == [200, 503]


def test_a_second_signal_ends_at_once(nano_artifact: Path) -> None:
    with serving(nano_artifact, "--max-model-len", "100000") as (process, url):
        thread = threading.Thread(target=ask, args=(url, []), kwargs={"max_tokens": 90_000})
        thread.start()
        with httpx.Client(base_url=url) as idle:
            wait_for(lambda: running(idle) == 1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        thread.join()


@pytest.mark.parametrize("flags", [("--default-chat-template-kwargs", "[]"), ("--max-model-len", "0")])
def test_bad_flags_are_told(nano_artifact: Path, flags: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "deltart", "serve", str(nano_artifact), "--port", "0", *flags]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert told.returncode == 2 and "error: " in told.stderr and "Traceback" not in told.stderr


def running(client: httpx.Client) -> float:
    return float(client.get("/server_info").json()["num_running_reqs"])


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
