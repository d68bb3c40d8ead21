"""A server under more and more requests at once: how long they take, and how many are good enough."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deltart.latency.endpoint import Answer, Endpoint
from deltart.latency.workload import Prompt

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Limits:
    """What a good answer keeps to: seconds to the first token, and between tokens on average."""

    first: float
    gap: float

    def good(self, answer: Answer) -> bool:
        """Whether it does."""
        return not answer.error and answer.first <= self.first and answer.gap <= self.gap


@dataclass(frozen=True)
class Level:
    """One number of requests at once.

    Attributes:
        first, gap, total: seconds at QUANTILES: to the first token, a token after it (mean of a reply), all.
        single_gaps: the same of single gaps; None where the server counts tokens at the end only.
        rate: tokens generated a second.
        requests: answered a second; `goodput` of them within the limits.
        cached: share of prompt tokens that the server had kept.
        errors: by what they say.
    """

    concurrency: int
    first: Sequence[float]
    gap: Sequence[float]
    total: Sequence[float]
    single_gaps: Sequence[float] | None
    rate: float
    requests: float
    goodput: float
    cached: float
    prompt_tokens: float
    answered: int
    errors: dict[str, int]


def sweep(
    endpoint: Endpoint, make: Callable[[int, int], list[Prompt]], concurrencies: Sequence[int], *, count: int,
    max_tokens: int, limits: Limits, seed: int, say: Callable[[str], None] = lambda text: None,
) -> list[Level]:  # fmt: skip
    """Measure every concurrency: so many clients, each asking its next question when the last is answered.

    Args:
        make: a workload. Each level has prompts of a seed of its own, so that none finds another's kept prefixes.
        count: requests of a level, at least three for each client.
    """
    found = []
    endpoint.ask(make(seed - 1, 1)[0], 4, seed)  # the first request of all pays for what is loaded lazily
    for level, concurrency in enumerate(concurrencies):
        say(f"{concurrency} at once")
        prompts = make(seed + level, max(count, 3 * concurrency))
        began = time.perf_counter()
        answers = _together(endpoint, prompts, concurrency, max_tokens, seed)
        found.append(summed(concurrency, answers, time.perf_counter() - began, limits))
    return found


def summed(concurrency: int, answers: Sequence[Answer], seconds: float, limits: Limits) -> Level:
    """The figures of one level."""
    fine = [answer for answer in answers if not answer.error]
    errors: dict[str, int] = {}
    for answer in answers:
        if answer.error:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    prompt = sum(a.prompt_tokens for a in fine)
    singles = [gap for a in fine for gap in a.gaps] if all(a.counted for a in fine) else []
    return Level(
        concurrency=concurrency,
        first=_quantiles([a.first for a in fine]),
        gap=_quantiles([a.gap for a in fine if a.tokens > a.early]),
        total=_quantiles([a.total for a in fine]),
        single_gaps=_quantiles(singles) if singles else None,
        rate=sum(a.tokens for a in fine) / seconds,
        requests=len(fine) / seconds,
        goodput=sum(limits.good(a) for a in fine) / seconds,
        cached=sum(a.cached_tokens for a in fine) / prompt if prompt else 0.0,
        prompt_tokens=prompt / len(fine) if fine else 0.0,
        answered=len(fine),
        errors=errors,
    )


def _together(
    endpoint: Endpoint, prompts: Sequence[Prompt], concurrency: int, max_tokens: int, seed: int
) -> list[Answer]:
    answers: list[Answer] = []
    waiting, lock = list(reversed(prompts)), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                prompt = waiting.pop()
            answer = endpoint.ask(prompt, max_tokens, seed)
            with lock:
                answers.append(answer)

    clients = [threading.Thread(target=client, daemon=True) for _ in range(concurrency)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return answers


def _quantiles(values: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, QUANTILES)] if values else [0.0] * len(QUANTILES)
