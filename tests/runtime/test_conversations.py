"""Whole conversations with kept prefixes and without: every reply the same, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltart
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams

HELDOUT = Path(__file__).parents[2] / "tools" / "nano" / "heldout.jsonl"
PARAMS = [SamplingParams(temperature=0, max_new_tokens=96), SamplingParams(temperature=0.8, seed=7, max_new_tokens=96)]
DRAFTS = 3


def conversations(count: int) -> list[list[str]]:
    """Of four turns: what users say in two held-out conversations of two."""
    lines = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
    said = [[m["content"] for m in line["messages"] if m["role"] == "user"] for line in lines]
    several = [turns for turns in said if len(turns) > 1]
    return [[*first, *second] for first, second in zip(several[::2], several[1::2], strict=False)][:count]


def talk(engine: Engine, turns: list[str], params: SamplingParams, preserve: bool) -> list[Any]:
    """The completions of a conversation."""
    chats, messages, found = Chats(engine), list[dict[str, Any]](), []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        reply = chats.reply(messages, params=params, preserve_thinking=preserve)
        messages.append(reply.message())
        found.append(reply.completion)
    return found


def accepted(completions: list[Any]) -> float:
    """Share of drafts that were right."""
    drafted = sum(c.usage.draft_tokens for c in completions)
    return sum(c.usage.accepted_tokens for c in completions) / drafted


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("preserve", [False, True], ids=["stripped", "preserved"])
def test_kept_prefixes_change_no_reply(preserve: bool, count: int, nano_artifact: Path) -> None:
    options = {"slots": 1, "draft_tokens": DRAFTS}
    with (
        deltart.load(str(nano_artifact), threads=1, options=EngineOptions(**options)) as keeps,
        deltart.load(str(nano_artifact), threads=1, options=EngineOptions(**options, cache_bytes=0)) as forgets,
    ):
        chosen = conversations(count)
        assert len(chosen) == count
        kept, cold = list[Any](), list[Any]()
        for turns in chosen:
            for params in PARAMS:
                kept += talk(keeps, turns, params, preserve)
                cold += talk(forgets, turns, params, preserve)
    assert [c.tokens for c in kept] == [c.tokens for c in cold]
    reused = sum(c.usage.cached_tokens for c in kept) / sum(c.usage.prompt_tokens for c in kept)
    assert reused > 0.5 and not any(c.usage.cached_tokens for c in cold)
    assert accepted(kept) == pytest.approx(accepted(cold), abs=0.01)
