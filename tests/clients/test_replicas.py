"""Two engines on Ray Serve: streams, prefixes that find their replica, and a replica that dies under load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.sse import chat_message, events

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def replicas(nano_artifact: Path, installed: Path) -> Iterator[httpx.Client]:
    """A client of `deltart serve --replicas 2`, in an environment that has the extra `ray`."""
    python = installed / "ray" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"ray is not installed (tests/clients/install.sh {installed} ray)")
    flags = [
        "--replicas",
        "2",
        "--port",
        "8131",
        "--threads",
        "1",
        "--slots",
        "4",
        "--max-model-len",
        "8192",
        "--memory-mb",
        "2000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [python, "-m", "deltart", "serve", str(nano_artifact), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        url = next(m[1] for line in process.stdout if (m := re.search(r"2 replicas at (http://\S+)", line)))
        threading.Thread(target=process.stdout.read, daemon=True).start()
        with httpx.Client(base_url=url, timeout=120) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 20, "temperature": 0, **fields}


def test_streams_equal_whole_answers(replicas: httpx.Client) -> None:
    body = ask('Type "planet" backwards', max_tokens=200)
    whole = replicas.post(CHAT, json=body).json()["choices"][0]["message"]
    answer = replicas.post(CHAT, json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert chat_message(events(answer.text))["content"] == whole["content"] == "tenalp"
    assert replicas.get("/v1/models").status_code == 200
    assert replicas.post(CHAT, json={"messages": []}).json()["error"]["param"] == "messages"


def test_turns_find_the_replica_of_their_conversation(replicas: httpx.Client) -> None:
    turns, found = 0, 0
    for conversation in range(8):
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": f"Conversation {conversation * 7919}. " + "word " * 40}
        ]
        for turn in range(3):
            body = replicas.post(CHAT, json={"messages": messages, "max_tokens": 8, "enable_thinking": False}).json()
            if turn:
                turns += 1
                found += body["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
            messages += [body["choices"][0]["message"], {"role": "user", "content": "Go on."}]
    assert found >= 0.8 * turns, (found, turns)


def test_a_replica_dies_under_load(replicas: httpx.Client) -> None:
    """Requests that had begun end in an error that is told; the others are answered, and so is what comes later."""
    answers: list[Any] = []

    def stream(i: int) -> None:
        body = ask(f"Request {i}", stream=True, max_tokens=600, ignore_eos=True)
        answers.append(httpx.post(f"{replicas.base_url}{CHAT}", json=body, timeout=120))

    asking = [threading.Thread(target=stream, args=(i,)) for i in range(12)]
    for thread in asking:
        thread.start()
    time.sleep(1.5)
    os.kill(replica_process(), signal.SIGKILL)
    for thread in asking:
        thread.join()
    ended = [events(answer.text)[-1] for answer in answers if answer.status_code == 200]
    whole = sum("choices" in event for event in ended)
    told = sum("error" in event for event in ended) + sum(answer.status_code == 503 for answer in answers)
    assert whole + told == len(answers) == 12 and whole
    assert replicas.post(CHAT, json=ask("And now?")).status_code == 200


def replica_process() -> int:
    """The process of one replica, which Ray names after it."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            name = (folder / "cmdline").read_bytes() if (folder / "cmdline").exists() else b""
            if b"ServeReplica:default:Replica" in name:
                return int(folder.name)
    raise AssertionError("no replica")
