"""Whether something became slower: the rule, and what it is built of.

A pair is one launch of each arm: the baseline twice (`base`, `again`) and the `new`. Within a launch the arms take
turns for some rounds. A launch gives the logarithm of the ratio new / base, the two baselines averaged, of two
statistics of its raw seconds: the median (of each round, and then the median of the rounds' ratios) and the minimum (of
all rounds). The estimate is the mean over launches.

The baselines against each other show what the same measurement gives where nothing changed. The threshold is the
larger of the minimal effect and three standard errors as those show them. A metric is slower, or faster, when one of
its statistics is beyond its threshold and the other points the same way: minima hold under a busy neighbour, medians
where now and then a step takes longer. Launches go on, from five to nine, while the noise of both statistics sets the
threshold; that looks at the baselines alone, so it favours no outcome. Means are not used: on a busy machine their
spread is ten times that of minima.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

import numpy as np

BASE, AGAIN, NEW = "base", "again", "new"
EFFECT = 0.05  # the least relative change that is worth a verdict
STORED_EFFECT = 0.10  # against numbers of another run: nothing was in turns
ERRORS = 3.0  # standard errors
LAUNCHES = (5, 9)  # at least, at most
RESAMPLES, COVERAGE = 2000, 0.95

Rounds = Sequence[Sequence[float]]  # raw seconds of each round
Arms = Mapping[str, Sequence[Rounds]]  # by launch
Outcome = Literal["slower", "faster", "same", "unclear"]


@dataclass(frozen=True)
class Change:
    """One statistic's change: ratio new / base, a 95 % bootstrap interval over launches, and what it must exceed."""

    ratio: float
    low: float
    high: float
    threshold: float

    @property
    def sign(self) -> int:
        """1 slower, -1 faster, 0 within the threshold."""
        beyond = abs(math.log(self.ratio)) > math.log1p(self.threshold)
        return int(math.copysign(1, self.ratio - 1)) if beyond else 0


@dataclass(frozen=True)
class Verdict:
    """What became of a metric.

    `unclear`: the noise hides twice the minimal effect, so that `same` would say little.
    """

    metric: str
    base_seconds: float
    new_seconds: float
    changes: Mapping[str, Change]
    effect: float
    launches: int

    @property
    def outcome(self) -> Outcome:
        """The verdict."""
        changes = self.changes.values()
        signs = {change.sign for change in changes}
        if 1 in signs and all(change.ratio > 1 for change in changes):
            return "slower"
        if -1 in signs and all(change.ratio < 1 for change in changes):
            return "faster"
        return "unclear" if min(change.threshold for change in changes) > 2 * self.effect else "same"


def judge(metric: str, arms: Arms, effect: float = EFFECT) -> Verdict:
    """The verdict on a metric.

    Args:
        arms: BASE, AGAIN and NEW: by launch, then by round, the raw seconds; launches and rounds correspond.
        effect: the least relative change that counts.
    """
    changes = {name: _paired(differ, arms, effect) for name, differ in STATISTICS.items()}
    return Verdict(metric, _typical(arms[BASE]), _typical(arms[NEW]), changes, effect, len(arms[NEW]))


def settled(samples: Mapping[str, Arms], effect: float = EFFECT) -> bool:
    """Whether for every metric the noise of the baselines leaves one statistic the minimal effect as its threshold."""
    return all(
        min(threshold(_nulls(differ, arms), effect) for differ in STATISTICS.values()) <= effect
        for arms in samples.values()
    )


def judge_stored(
    metric: str, stored: Sequence[Rounds], new: Sequence[Rounds], effect: float = STORED_EFFECT
) -> Verdict:
    """The verdict against numbers of another run on the same machine.

    Nothing was measured in turns, so what the machine did between the runs counts as a change: the minimal effect is
    larger, and the errors are those of both runs' launches.
    """
    changes = {}
    for name, level in LEVELS.items():
        before, after = ([level(rounds) for rounds in launches] for launches in (stored, new))
        error = math.hypot(*(_error(values, fmean(values), len(values) - 1) for values in (before, after)))
        rng = np.random.default_rng(0)
        drawn = rng.choice(after, (RESAMPLES, len(after))).mean(1) - rng.choice(before, (RESAMPLES, len(before))).mean(
            1
        )
        changes[name] = _change(fmean(after) - fmean(before), drawn, max(effect, math.expm1(ERRORS * error)))
    return Verdict(metric, _typical(stored), _typical(new), changes, effect, len(new))


def threshold(nulls: Sequence[float], effect: float) -> float:
    """What a relative change must exceed.

    Args:
        nulls: log ratios of two identical arms, by launch; their expected value is 0.
    """
    # new - (base + again) / 2 has 3/2 the variance of one arm, again - base has 2.
    return max(effect, math.expm1(ERRORS * _error(nulls, 0.0, len(nulls)) * math.sqrt(0.75)))


def _median_level(rounds: Rounds) -> float:
    return median(math.log(median(raw)) for raw in rounds)


def _minimum_level(rounds: Rounds) -> float:
    return math.log(min(min(raw) for raw in rounds))


def _median_difference(upper: Rounds, *lower: Rounds) -> float:
    """Of the logs of each round's median: upper, less the mean of the lower ones; the median over the rounds."""
    logs = [[math.log(median(raw)) for raw in rounds] for rounds in (upper, *lower)]
    return median(first - fmean(others) for first, *others in zip(*logs, strict=True))


def _minimum_difference(upper: Rounds, *lower: Rounds) -> float:
    return _minimum_level(upper) - fmean(_minimum_level(rounds) for rounds in lower)


Differ = Callable[..., float]  # of one launch: the new arm's rounds, and those of what it is compared with
LEVELS: Mapping[str, Callable[[Rounds], float]] = {"median": _median_level, "minimum": _minimum_level}
STATISTICS: Mapping[str, Differ] = {"median": _median_difference, "minimum": _minimum_difference}


def _paired(differ: Differ, arms: Arms, effect: float) -> Change:
    logs = [differ(*rounds) for rounds in zip(arms[NEW], arms[BASE], arms[AGAIN], strict=True)]
    drawn = _resampled(logs, np.random.default_rng(0))
    return _change(fmean(logs), drawn, threshold(_nulls(differ, arms), effect))


def _nulls(differ: Differ, arms: Arms) -> list[float]:
    return [differ(again, base) for base, again in zip(arms[BASE], arms[AGAIN], strict=True)]


def _error(values: Sequence[float], centre: float, freedom: int) -> float:
    """The standard error of their mean, from their spread about `centre` with so many degrees of freedom."""
    return math.sqrt(sum((value - centre) ** 2 for value in values) / max(freedom, 1) / len(values))


def _resampled(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Means of as many values, drawn with replacement."""
    return rng.choice(values, (RESAMPLES, len(values))).mean(1)


def _change(log_ratio: float, drawn: np.ndarray, limit: float) -> Change:
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Change(math.exp(log_ratio), float(np.exp(low)), float(np.exp(high)), limit)


def _typical(launches: Sequence[Rounds]) -> float:
    return median(median(raw) for rounds in launches for raw in rounds)
