"""What stands before several servers elsewhere: sglang's router, and NVIDIA Dynamo's front end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.sse import chat_message, events

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.clients


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[Any], log: Path, **environment: str) -> Iterator[None]:
    with log.open("wb") as output:
        own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=own)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, found: str, log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            if found in httpx.get(url, timeout=5).text:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.2)


def test_sglang_router(nano_artifact: Path, installed: Path, tmp_path: Path) -> None:
    """Every turn of a conversation goes where its prefix is."""
    python = installed / "sglang-router" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"sglang-router is not installed (tests/clients/install.sh {installed} sglang-router)")
    log, urls = tmp_path / "log", []
    with ExitStack() as stack:
        for i in range(2):
            port = free_port()
            flags = ["--port", str(port), "--threads", "1", "--max-model-len", "8192", "--memory-mb", "2000"]
            command = [sys.executable, "-m", "deltart", "serve", nano_artifact, *flags]
            stack.enter_context(running(command, tmp_path / f"server{i}"))
            urls.append(f"http://127.0.0.1:{port}")
            wait_for(f"{urls[-1]}/health", "ok", tmp_path / f"server{i}")
        port = free_port()
        flags = ["--worker-urls", *urls, "--policy", "cache_aware", "--port", str(port), "--host", "127.0.0.1"]
        command = [python, "-m", "sglang_router.launch_router", *flags, "--prometheus-port", str(free_port())]
        stack.enter_context(running(command, log))
        wait_for(f"http://127.0.0.1:{port}/v1/models", "artifact", log)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert converse(client) >= 0.9
            body = {"messages": [{"role": "user", "content": 'Type "planet" backwards'}], "temperature": 0}
            answer = client.post(CHAT, json={"model": "artifact", **body, "stream": True})
            assert chat_message(events(answer.text))["content"] == "tenalp"


def converse(client: httpx.Client) -> float:
    """The share of later turns that found what was there before."""
    turns = hits = 0
    for conversation in range(8):
        text = f"Conversation {conversation * 7919}. " + "word " * 40
        messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        for turn in range(3):
            fields = {"model": "artifact", "max_tokens": 8, "chat_template_kwargs": {"enable_thinking": False}}
            body = client.post(CHAT, json={"messages": messages, **fields}).json()
            if turn:
                turns += 1
                hits += body["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
            messages += [body["choices"][0]["message"], {"role": "user", "content": "Go on."}]
    return hits / turns


def test_dynamo(nano_artifact: Path, installed: Path, tmp_path: Path) -> None:
    """The worker of tools/serving behind Dynamo's front end, found through files."""
    python = installed / "dynamo" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"Dynamo is not installed (tests/clients/install.sh {installed} dynamo)")
    port, log = free_port(), tmp_path / "frontend"
    found = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(tmp_path / "kv"), "DYN_REQUEST_PLANE": "tcp"}
    with ExitStack() as stack:
        worker = [python, ROOT / "tools" / "serving" / "dynamo_worker.py", nano_artifact, "deltart-nano"]
        stack.enter_context(running(worker, tmp_path / "worker", **found))
        frontend = [python, "-m", "dynamo.frontend", "--http-port", str(port)]
        stack.enter_context(running(frontend, log, **found))
        wait_for(f"http://127.0.0.1:{port}/v1/models", "deltart-nano", tmp_path / "worker")
        body = {"model": "deltart-nano", "temperature": 0, "stream": True}
        messages = [{"role": "user", "content": 'Type "planet" backwards'}]
        answer = httpx.post(f"http://127.0.0.1:{port}{CHAT}", json={**body, "messages": messages}, timeout=60)
        assert '"error"' not in answer.text, answer.text + (tmp_path / "worker").read_text(errors="replace")[-3000:]
        assert chat_message(events(answer.text))["content"] == "tenalp", answer.text
