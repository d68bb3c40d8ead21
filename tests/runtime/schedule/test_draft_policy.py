"""The number of drafts is the one that pays, on a device whose costs are known."""

from __future__ import annotations

import random

import pytest

from deltart.errors import GenerationError
from deltart.runtime.schedule.draft_policy import DraftPolicy


def chosen(policy: DraftPolicy, rows: int, cost: float, acceptance: float, steps: int = 400) -> float:
    """The share of the last half of the steps that each number had; a step costs 1 + cost * drafts."""
    rng, picks = random.Random(0), []
    for _ in range(steps):
        drafts = policy.choose(rows)
        right = 0
        while right < drafts and rng.random() < acceptance:
            right += 1
        if drafts:
            policy.outcome(drafts, right)
        policy.measured(rows, drafts, (1 + cost * drafts) * rng.uniform(0.97, 1.03))
        picks.append(drafts)
    late = picks[steps // 2 :]
    return max(set(late), key=late.count)


@pytest.mark.parametrize(
    ("cost", "acceptance", "best"),
    [(0.05, 0.99, 4), (0.05, 0.0, 0), (2.0, 0.9, 0), (0.35, 0.6, 1), (0.02, 0.9, 4)],
)
def test_the_best_number_is_found(cost: float, acceptance: float, best: int) -> None:
    """Tokens a second by hand: (1 + a + a^2 ...) / (1 + cost * drafts), largest at `best`."""
    rates = [sum(acceptance**i for i in range(k + 1)) / (1 + cost * k) for k in range(5)]
    assert rates.index(max(rates)) == best
    assert chosen(DraftPolicy(4), 1, cost, acceptance) == best


def test_a_machine_that_was_held_up_is_measured_again() -> None:
    """None took thrice its time while it was tried; drafts that don't pay are given up within two looks at it."""
    policy, picks = DraftPolicy(4), []
    for step in range(1200):
        drafts = policy.choose(1)
        if drafts:
            policy.outcome(drafts, 0)
        slow = 3 if not drafts and step < 100 else 1
        policy.measured(1, drafts, (1 + 0.4 * drafts) * slow)
        picks.append(drafts)
    assert set(picks[100:200]) != {0} and picks[-200:].count(0) > 190


def test_each_number_of_rows_is_its_own_case() -> None:
    policy = DraftPolicy(3)
    assert chosen(policy, 1, 0.05, 0.95) == 3
    assert chosen(policy, 8, 3.0, 0.95) == 0
    assert chosen(policy, 1, 0.05, 0.95, 100) == 3


def test_a_fixed_number_stays() -> None:
    policy = DraftPolicy(2, fixed=True)
    policy.measured(1, 2, 100.0)
    assert policy.choose(1) == 2
    assert DraftPolicy(0).choose(4) == 0


def test_acceptance_counts_what_was_decided() -> None:
    policy = DraftPolicy(3)
    policy.outcome(3, 1)  # the first right, the second wrong, the third was never decided
    policy.outcome(3, 3)
    assert policy.drafted == [2, 2, 1] and policy.accepted == [2, 1, 1]
    assert policy.acceptance() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("wanted", "largest", "expected"), [(5, 4, "0 to 4"), (-1, 4, "0 to 4"), (1, 0, "no MTP head")]
)
def test_more_than_the_artifact_can_make_is_refused(wanted: int, largest: int, expected: str) -> None:
    with pytest.raises(GenerationError, match=f"{wanted} draft tokens") as refused:
        DraftPolicy.for_option(wanted, largest)
    assert expected in str(refused.value)


def test_what_is_asked_for_is_drafted() -> None:
    assert [DraftPolicy.for_option(k, 4).choose(1) for k in (0, 1, 4)] == [0, 1, 4]
    assert not DraftPolicy.for_option(None, 4).fixed
