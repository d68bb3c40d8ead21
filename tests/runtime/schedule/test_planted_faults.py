"""Faults that others shipped, planted one at a time: the schedules of test_schedules.py must see each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deltart.runtime.backends import host_slots, snapshots
from deltart.runtime.backends.host_slots import HostSlots
from deltart.runtime.backends.ort_buffers import OrtBuffers
from deltart.runtime.backends.slots import Drawn, Row
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request
from deltart.runtime.structure.states import StateConstraint
from deltart.runtime.structure.structure import Structure
from support.schedules import Arrival, Bench, Setting, check

TIGHT = Setting(slots=2, drafts=3, cache_bytes=100_000_000, token_budget=10**9, prefill_tokens=64)


@pytest.fixture
def turns(cpu: Bench, prompts: list[list[int]]) -> list[Arrival]:
    """Conversations whose later turns repeat the earlier ones, penalised and sampled."""
    params = SamplingParams(temperature=1.4, frequency_penalty=2.0, max_new_tokens=40)
    words = cpu.compile(Structure.regex("[a-z]{3,20}( [a-z]{1,9}){2,5}"))
    asked = [
        Request(tuple(ids), replace(params, seed=n), structure=words if n > 3 else None)
        for n, ids in enumerate(prompts[:6])
    ]
    again = [replace(request, ids=(*request.ids, *prompts[7][:20])) for request in asked]
    return [Arrival(step, request) for step, request in enumerate([*asked, *asked, *again])]


def plant_live_buffers(patch: pytest.MonkeyPatch) -> None:
    """A snapshot holds views of the slot's own state instead of copies."""
    patch.setattr(
        OrtBuffers, "read_recurrent", lambda self, slot: {name: array[slot] for name, array in self._recurrent.items()}
    )


def plant_commit_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """The state advances over one token more than was drawn."""
    real: Callable[..., dict[str, np.ndarray]] = host_slots.text_inputs

    def inputs(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        made = real(*arguments, **options)
        return made | {"n_commit": np.minimum(made["n_commit"] + 1, made["n_tokens"])}

    patch.setattr(host_slots, "text_inputs", inputs)


def plant_penalised_drafts(patch: pytest.MonkeyPatch) -> None:
    """A rejected draft counts as generated."""
    real = host_slots.draw

    def draw(row: Row, logits: np.ndarray, drafts: list[int]) -> Drawn:
        drawn = real(row, logits, drafts)
        for token in drafts[drawn.accepted :]:
            row.sampler.counts[token] += 1
        return drawn

    patch.setattr(host_slots, "draw", draw)


def plant_kept_rejections(patch: pytest.MonkeyPatch) -> None:
    """The states of rejected drafts count."""
    real = HostSlots._take

    def take(self: HostSlots, *arguments: Any) -> Drawn:
        if arguments[-1]:
            self._text.keep()
            self._text.keep = lambda: None  # type: ignore[method-assign]
        try:
            return real(self, *arguments)
        finally:
            self._text.__dict__.pop("keep", None)

    patch.setattr(HostSlots, "_take", take)


def plant_unread_prefix(patch: pytest.MonkeyPatch) -> None:
    """A hit leaves the slot's convolution inputs as they were."""
    real = OrtBuffers.write_recurrent

    def write(self: OrtBuffers, slot: int, states: Mapping[str, np.ndarray]) -> None:
        real(self, slot, {name: array for name, array in states.items() if not name.endswith(".conv")})

    patch.setattr(OrtBuffers, "write_recurrent", write)


def plant_advanced_grammar(patch: pytest.MonkeyPatch) -> None:
    """The drafts that a grammar was asked about count as if they had come."""

    def permits(self: StateConstraint, tokens: Sequence[int]) -> int:
        for number, token in enumerate(tokens):
            allowed = self.allowed()
            if allowed is not None and not int(allowed[token // 32]) >> (token % 32) & 1:
                return number
            self.accept(token)
        return len(tokens)

    patch.setattr(StateConstraint, "permits", permits)


FAULTS = [
    plant_live_buffers,
    plant_commit_off_by_one,
    plant_penalised_drafts,
    plant_kept_rejections,
    plant_unread_prefix,
    plant_advanced_grammar,
]


def test_without_a_fault_the_turns_are_right(cpu: Bench, turns: list[Arrival]) -> None:
    assert check(cpu, TIGHT, turns).cached_tokens


@pytest.mark.parametrize("plant", FAULTS, ids=lambda fault: fault.__name__.removeprefix("plant_"))
def test_faults_are_seen(
    cpu: Bench, turns: list[Arrival], plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arrival in turns:
        for index in range(arrival.request.n):
            cpu.alone(arrival.request, index)
    plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017  # a wrong text, or a grammar that refuses what was drawn
        check(cpu, TIGHT, turns)


def acceptance(bench: Bench, arrivals: list[Arrival]) -> float:
    """Share of first drafts that were right, of the arrivals whose prompt was found in the cache."""
    groups, *_ = bench.run(replace(TIGHT, drafts=1, slots=1), arrivals)
    usages = [group[0].usage for group in groups[len(groups) // 2 :]]
    assert all(usage.cached_tokens for usage in usages)
    return sum(usage.accepted_tokens for usage in usages) / sum(usage.draft_tokens for usage in usages)


def test_the_drafting_head_is_kept_with_the_prefix(
    cpu: Bench, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts stay right without it; only how often drafts are right tells."""
    greedy = SamplingParams(temperature=0, max_new_tokens=60)
    requests = [Request(tuple(ids), greedy) for ids in prompts[:12]]
    twice = [Arrival(step, request) for step, request in enumerate([*requests, *requests])]
    kept = acceptance(cpu, twice)
    cold, *_ = cpu.run(replace(TIGHT, drafts=1, slots=1, cache_bytes=0), [Arrival(0, r) for r in requests])
    drafted = sum(group[0].usage.draft_tokens for group in cold)
    assert kept >= sum(group[0].usage.accepted_tokens for group in cold) / drafted - 0.01

    def forgetful(self: snapshots.SlotCopies, name: str, slot: int, first: int, rows: np.ndarray) -> None:
        if not name.startswith(snapshots.MTP):
            self._text.write_cache(name, slot, first, rows)
        elif self._mtp is not None:
            self._mtp.write_cache(name.removeprefix(snapshots.MTP), slot, max(first - 1, 0), np.zeros_like(rows))

    monkeypatch.setattr(snapshots.SlotCopies, "_write", forgetful)
    assert acceptance(cpu, twice) < kept - 0.05
