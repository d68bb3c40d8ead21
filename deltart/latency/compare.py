"""A comparison from end to end: in turns where both sides can run here, else against stored samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from deltart.errors import BenchError
from deltart.latency.baselines import Baseline, check_comparable
from deltart.latency.cases import Case
from deltart.latency.child import Child
from deltart.latency.setting import Setting, Subject, opener
from deltart.latency.turns import Samples, launch
from deltart.latency.verdict import (
    AGAIN,
    BASE,
    EFFECT,
    LAUNCHES,
    NEW,
    STORED_EFFECT,
    Verdict,
    judge,
    judge_stored,
    settled,
)

ROUNDS = 4
Say = Callable[[str], None]


def in_turns(
    base: Subject,
    new: Subject,
    setting: Setting,
    cases: Sequence[Case],
    say: Say,
    effect: float = EFFECT,
    seed: int = 0,
) -> tuple[list[Verdict], Samples]:
    """Both sides, and the baseline a second time, until the noise is known; the verdicts and the samples."""
    arms = {BASE: opener(base, setting), AGAIN: opener(base, setting), NEW: opener(new, setting)}
    samples, rng = Samples(), random.Random(seed)
    for number in range(1, LAUNCHES[1] + 1):
        launch(arms, cases, ROUNDS, rng, samples, lambda name, n=number: say(f"launch {n}: {name}"))  # type: ignore[misc]
        if number >= LAUNCHES[0] and settled(samples, effect):
            break
    return [judge(metric, found, effect) for metric, found in samples.items()], samples


def alone(subject: Subject, setting: Setting, cases: Sequence[Case], say: Say, seed: int = 0) -> Samples:
    """One subject by itself, twice in turns: what a baseline stores."""
    arms = {BASE: opener(subject, setting), AGAIN: opener(subject, setting)}
    samples, rng = Samples(), random.Random(seed)
    for number in range(1, LAUNCHES[0] + 1):
        launch(arms, cases, ROUNDS, rng, samples, lambda name, n=number: say(f"launch {n}: {name}"))  # type: ignore[misc]
    return samples


def against_stored(
    baseline: Baseline,
    subject: Subject,
    setting: Setting,
    cases: Sequence[Case],
    say: Say,
    effect: float = STORED_EFFECT,
) -> tuple[list[Verdict], Samples]:
    """The subject's own samples against those of the baseline.

    Raises:
        BenchError: the baseline is of another machine or setting.
    """
    check_comparable(baseline, setting)
    samples = alone(subject, setting, cases, say)
    verdicts = [
        judge_stored(
            name, [*baseline.samples[name][BASE], *baseline.samples[name][AGAIN]], [*arms[BASE], *arms[AGAIN]], effect
        )
        for name, arms in samples.items()
    ]
    return verdicts, samples


def still_here(baseline: Baseline) -> bool:
    """Whether the baseline's artifact and its Python are as they were, so that it can be measured again in turns."""
    subject = baseline.subject
    if not subject.same_artifact() or (subject.python is not None and not Path(subject.python).exists()):
        return False
    try:
        with Child(subject.python) as child:
            return bool(child.ask("versions") == dict(subject.versions))
    except BenchError:
        return False
