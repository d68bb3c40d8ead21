"""Every request body that a real client was seen to send is answered; images are refused without a vision encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltart.runtime.engine import Engine
from deltart.runtime.server.settings import Settings
from support.serving import NAME, Served, served

CAPTURES = Path(__file__).resolve().parents[4] / "shared" / "client-captures"
FILES = sorted(path for path in CAPTURES.glob("*.json") if path.stem != "suite_schemathesis")  # whose bodies are random
LENGTHS = ("max_completion_tokens", "max_output_tokens")
pytestmark = pytest.mark.skipif(not FILES, reason=f"no captured requests at {CAPTURES}")


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Served]:
    with served(engine, Settings((NAME, "gpt-4.1-2025-04-14"))) as server:
        yield server


def requests(path: Path) -> list[dict[str, Any]]:
    return [
        r for r in json.loads(path.read_text())["requests"] if isinstance(r["body"], dict) and r["method"] == "POST"
    ]


def short(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body with a reply of four tokens, and without the marks of what the capture left out."""
    tools = body.get("tools")
    kept = {"tools": [tool for tool in tools if isinstance(tool, dict)]} if isinstance(tools, list) else {}
    length = next((name for name in LENGTHS if name in body), "max_tokens")
    if path.endswith("responses"):
        length = "max_output_tokens"
    few = {} if path.endswith("count_tokens") else {length: 4}
    return {**body, **kept, **few} | ({"min_tokens": 2} if "min_tokens" in body else {})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_captured_requests(path: Path, server: Served) -> None:
    for request in requests(path):
        body = short(request["path"], request["body"])
        answer = server.client.post(request["path"], json=body, headers=request["headers"])
        if "vision" in answer.text and any(mark in str(body) for mark in ("image_url", "'image'", "input_image")):
            assert answer.status_code == 400
        else:
            assert answer.status_code == 200, (request["path"], answer.text)
            assert '"error":{' not in answer.text
