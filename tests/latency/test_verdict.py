"""The rule that calls something slower, on distributions with known answers: quiet, busy, and with slow processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from deltart.latency.verdict import (
    AGAIN,
    BASE,
    EFFECT,
    LAUNCHES,
    NEW,
    Arms,
    Outcome,
    judge,
    judge_stored,
    settled,
    threshold,
)

ROUNDS, STEPS = 4, 48
RUNS = 60
Samples = list[list[list[float]]]


def measured(rng: np.random.Generator, slower: float, busy: float, launches: int) -> Samples:
    """A metric of 1 ms as a machine gives it: processes differ by 2 %, steps by 3 %, and a neighbour takes turns.

    `busy` is the share of steps that wait for the neighbour's time slice, of some milliseconds.
    """
    found = []
    for _ in range(launches):
        level = (1 + slower) * math.exp(rng.normal(0, 0.02))
        shape = (ROUNDS, STEPS)
        waits = rng.binomial(1, busy, shape) * rng.exponential(4.0, shape)
        found.append((1e-3 * (level * np.exp(np.abs(rng.normal(0, 0.03, shape))) + waits)).tolist())
    return found


def flagged(seed: int, slower: float, busy: float) -> Outcome:
    rng = np.random.default_rng(seed)
    arms: dict[str, Samples] = {BASE: [], AGAIN: [], NEW: []}
    for number in range(1, LAUNCHES[1] + 1):
        for arm in arms:
            arms[arm] += measured(rng, slower if arm == NEW else 0.0, busy, 1)
        if number >= LAUNCHES[0] and settled({"m": arms}):
            break
    return judge("m", arms).outcome


@pytest.mark.parametrize("busy", [0.0, 0.3])
@pytest.mark.parametrize(("slower", "expected"), [(0.0, "same"), (0.15, "slower"), (-0.15, "faster")])
def test_what_is_called_slower(slower: float, expected: Outcome, busy: float) -> None:
    found = [flagged(seed, slower, busy) for seed in range(RUNS)]
    if expected == "same":
        assert found.count("slower") <= RUNS // 20 and found.count("faster") <= RUNS // 20
    else:
        assert found.count(expected) >= RUNS * 19 // 20


def test_a_busy_machine_needs_no_larger_effect() -> None:
    """Minima hold while every third step waits; medians alone would not say anything."""
    arms = {arm: measured(np.random.default_rng(i), 0.0, 0.3, 9) for i, arm in enumerate((BASE, AGAIN, NEW))}
    found = judge("m", arms).changes
    assert found["minimum"].threshold < 0.08


def test_the_threshold() -> None:
    assert threshold([0.0] * 5, EFFECT) == EFFECT
    nulls = [0.1, -0.1] * 4
    assert threshold(nulls, EFFECT) == pytest.approx(math.expm1(3 * 0.1 / math.sqrt(8) * math.sqrt(0.75)))


def test_only_the_new_arm_is_judged() -> None:
    """Twice the time in one arm: the ratio is 2 whichever way rounds are arranged, and the interval holds it."""
    one: Sequence[list[list[float]]] = [[[1.0, 1.1, 1.2], [2.0, 2.1, 2.2]]] * 5
    two = [[[2 * x for x in raw] for raw in rounds] for rounds in one]
    verdict = judge("m", {BASE: one, AGAIN: one, NEW: two})
    assert verdict.outcome == "slower"
    for change in verdict.changes.values():
        assert change.ratio == pytest.approx(2.0)
        assert change.low <= change.ratio <= change.high or change.low == pytest.approx(change.high)
    assert judge("m", {BASE: two, AGAIN: two, NEW: one}).outcome == "faster"


def test_noise_is_not_called_the_same() -> None:
    """Baselines that differ twofold from launch to launch, either way, hide any change."""
    ups, downs = [[[[level] * 3] * 2 for level in levels] for levels in ((1.0, 2.0, 1.0, 2.0), (2.0, 1.0, 2.0, 1.0))]
    wild: Arms = {BASE: ups, AGAIN: downs, NEW: ups}
    assert judge("m", wild).outcome == "unclear"
    assert not settled({"m": wild})


def test_stored_numbers() -> None:
    """A tenth more is within what two runs differ by, a quarter more is not."""
    before = measured(np.random.default_rng(0), 0.0, 0.0, 10)
    same, more = (measured(np.random.default_rng(seed), slower, 0.0, 10) for seed, slower in ((1, 0.04), (2, 0.25)))
    assert judge_stored("m", before, same).outcome == "same"
    assert judge_stored("m", before, more).outcome == "slower"
