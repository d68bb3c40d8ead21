"""One streamed request to an OpenAI endpoint, timed by the tokens that the server counts, not by its pieces."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from deltart.errors import BenchError
from deltart.latency.workload import Prompt

TIMEOUT = 600.0  # seconds without a byte
EXPECTED = "an OpenAI endpoint, such as http://127.0.0.1:8000/v1"


@dataclass
class Answer:
    """What a request came to.

    Attributes:
        first: seconds to the first token.
        last: seconds to the last token.
        total: seconds to the end.
        early: tokens that came with the first one.
        counted: the server says with each piece how many tokens there are.
        gaps: seconds between tokens, one for each after those; only where they are `counted`.
        error: why there is no answer; empty where there is one.
    """

    first: float = 0.0
    last: float = 0.0
    total: float = 0.0
    early: int = 1
    counted: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def gap(self) -> float:
        """Mean seconds a token after the first: what is left of a reply, over the tokens that the server counted."""
        return (self.last - self.first) / (self.tokens - self.early) if self.tokens > self.early else 0.0


class Endpoint:
    """A server's chat completions.

    Args:
        url: with or without /v1 at its end.
        model: to ask for; the first that the server names when empty.
        key: sent as a bearer token where there is one.

    Raises:
        BenchError: there is no such server.
    """

    def __init__(self, url: str, model: str = "", key: str = "") -> None:
        self._url: SplitResult = urlsplit(url if "//" in url else f"http://{url}")
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise BenchError(f"{url} is no address", EXPECTED)
        self._base = self._url.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.model = model or self._first_model()

    def ask(self, prompt: Prompt, max_tokens: int, seed: int) -> Answer:
        """Stream one reply of at most `max_tokens`. Whatever goes wrong is in the answer."""
        body = {
            "model": self.model, "messages": list(prompt.messages), "max_tokens": max_tokens, "seed": seed,
            "ignore_eos": True, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }  # fmt: skip
        answer = Answer()
        try:
            connection = self._connect()
            began = time.perf_counter()
            connection.request("POST", f"{self._base}/chat/completions", json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                answer.error = f"HTTP {response.status}: {response.read(200).decode(errors='replace')}"
            else:
                _read(response, began, answer)
            connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        if not answer.error and not answer.tokens:
            answer.error = "the server counted no tokens (stream_options.include_usage)"
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        assert self._url.hostname is not None
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname, self._url.port, timeout=TIMEOUT)

    def _first_model(self) -> str:
        where = f"{self._url.scheme}://{self._url.netloc}{self._base}/models"
        try:
            connection = self._connect()
            connection.request("GET", f"{self._base}/models", headers=self._headers)
            response = connection.getresponse()
            content = response.read()
            connection.close()
            if response.status != 200:
                raise BenchError(f"{where} answers {response.status}", EXPECTED, "does it need --api-key?")
            return str(json.loads(content)["data"][0]["id"])
        except (OSError, http.client.HTTPException) as error:
            raise BenchError(f"{where} does not answer ({error})", EXPECTED, "is the server running?") from error
        except (ValueError, LookupError, TypeError) as error:
            raise BenchError(f"{where} names no model", EXPECTED) from error


def _read(response: http.client.HTTPResponse, began: float, answer: Answer) -> None:
    """Take the events of a stream: a token is there when the server says that it counts it, or else with its piece."""
    last, count = began, 0
    for line in response:
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        now, event = time.perf_counter(), json.loads(line[5:])
        if "error" in event:
            answer.error = str(event["error"])[:200]
            return
        choices, usage = event.get("choices") or [], event.get("usage") or {}
        tokens = int(usage.get("completion_tokens") or 0)
        answer.counted |= bool(choices and tokens)
        if not answer.first and choices and (tokens or _has_text(choices)):
            answer.first, answer.last, answer.early, last = now - began, now - began, max(tokens, 1), now
        elif choices and (tokens > count or (not answer.counted and _has_text(choices))):
            answer.gaps += [(now - last) / (tokens - count)] * (tokens - count) if tokens > count else []
            answer.last, last = now - began, now
        answer.total, count = now - began, max(count, tokens)
        answer.prompt_tokens = int(usage.get("prompt_tokens") or answer.prompt_tokens)
        details = usage.get("prompt_tokens_details") or {}
        answer.cached_tokens = int(details.get("cached_tokens") or answer.cached_tokens)
    answer.tokens = count


def _has_text(choices: Sequence[dict[str, Any]]) -> bool:
    delta = choices[0].get("delta") or {} if choices else {}
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
