"""What is measured of an engine: a case is one thing to ask a worker, and the seconds in its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltart.latency.child import Child

PROMPTS = (128, 1024, 4096, 32768)  # tokens, where the context allows
CONTEXTS = (128, 1024, 8192, 32768)
ROWS = (1, 4, 8)
STEPS = 48  # of a decode that is timed at once


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: of the metric.
        do: the worker's operation, called with `arguments`.
        result: where its answer has the seconds: one number, or a list of them.
        repeats: calls of one sample.
        tokens: per call, for rates: prompt tokens read, or rows that get a token in each gap.
        context: tokens that a step or a prompt reaches.
    """

    name: str
    do: str
    arguments: Mapping[str, Any]
    result: str
    repeats: int = 1
    tokens: int = 1
    context: int = 0

    def sample(self, child: Child) -> list[float]:
        """Seconds, raw."""
        found: list[float] = []
        for _ in range(self.repeats):
            value = child.ask(self.do, **self.arguments)[self.result]
            found += value if isinstance(value, list) else [value]
        return found


def decode(context: int, rows: int, steps: int = STEPS) -> Case:
    """Gaps between tokens of `rows` sequences side by side, over `context` tokens."""
    arguments = {"context": context, "rows": rows, "steps": steps}
    return Case(f"gap rows={rows} context={context}", "decode", arguments, "gaps", tokens=rows, context=context + steps)


def first_token(tokens: int, repeats: int = 1) -> Case:
    """Time to the first token after a prompt of which nothing is kept."""
    arguments = {"tokens": tokens, "seed": tokens}
    return Case(f"ttft prompt={tokens}", "prompt", arguments, "seconds", repeats, tokens, tokens)


def kept_prefix(tokens: int, repeats: int = 1) -> Case:
    """Time to the first token of a prompt that was read before."""
    arguments = {"tokens": tokens, "seed": tokens, "fresh": False}
    return Case(f"ttft kept={tokens}", "prompt", arguments, "seconds", repeats, tokens, tokens)


def regression_cases(limit: int) -> list[Case]:
    """The few that a comparison takes turns with, within a context of `limit` tokens.

    Both kinds of work, alone and in a batch, at sizes where a sample takes tens of milliseconds on a small model.
    """
    found = [decode(128, 1), decode(128, 4, STEPS // 2), first_token(48, 12)]
    return [case for case in found if case.context + 2 * STEPS <= limit] or [decode(8, 1, 8), first_token(16, 12)]


def all_cases(limit: int, prompts: Sequence[int] = PROMPTS, contexts: Sequence[int] = CONTEXTS,
              rows: Sequence[int] = ROWS) -> list[Case]:  # fmt: skip
    """What `deltart bench` measures within a context of `limit` tokens: several rows at the shortest only."""
    found = [first_token(tokens) for tokens in prompts]
    found += [decode(context, 1) for context in contexts]
    found += [decode(contexts[0], many) for many in rows if many > 1]
    found += [kept_prefix(tokens) for tokens in prompts[:3]]
    return [case for case in found if case.context + 2 * STEPS <= limit]
