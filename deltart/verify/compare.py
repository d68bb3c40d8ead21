"""Compares runners of one model: every block's hidden state, the final one, the logits, and greedy replies.

Outputs are Polygraphy's `RunResults`, so that its tools read them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from deltart.errors import DeltaRTError
from deltart.files import replacing, write_atomically
from deltart.plugins.tolerance import relative_rms
from deltart.verify.shown import Shown
from deltart.verify.tolerances import TWIN_SHARE, allowed, logits_of, tolerance_of


@dataclass(frozen=True)
class Runner:
    """Something that computes the model.

    Args:
        points: token ids [T] to arrays [T, ...] by point: "embed.h", "layers.0.h", ..., "hidden"; and "logits" [n, V]
            of the same n tokens in every runner.
        reply: a prompt's token ids to its greedy reply's; None for a runner that is not asked.
        sees: a prompt with a picture to arrays by point: the tower's blocks "embed.h", "blocks.0.h", ... and "embeds",
            [patches or rows, ...], then "positions" [T, 3] that the tokens had in the text model, and its "hidden"
            [T, H] and "logits" [n, V]; None for a runner that is shown none.
    """

    points: Callable[[np.ndarray], dict[str, np.ndarray]]
    reply: Callable[[Sequence[int]], list[int]] | None = None
    sees: Callable[[Shown], dict[str, np.ndarray]] | None = None


@dataclass(frozen=True)
class Divergence:
    """Where a reply leaves the reference's: prompt, position in the reply, and how near a tie that was.

    `gap` is the difference of the reference's logits for the two tokens there, over the RMS of its logits.
    """

    prompt: int
    position: int
    gap: float


@dataclass
class Collected:
    """What the runners gave: outputs (one iteration each), where replies diverged, and why some did not run.

    `outside` is the runner that all others are to be judged by; `shown` says what those that see were shown.
    """

    tokens: int
    prompts: int
    outside: str
    shown: list[str] = field(default_factory=list)
    outputs: RunResults = field(default_factory=RunResults)
    divergences: dict[str, list[Divergence]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the outputs as Polygraphy's JSON (`polygraphy run --load-outputs`, `polygraphy inspect data`)."""
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), replacing(path) as partial:
            self.outputs.save(str(partial))


@dataclass(frozen=True)
class Difference:
    """One point of one runner against that of another: ||a - b|| / ||b||, max |a - b|, and whether it is tolerated."""

    point: str
    runner: str
    against: str
    relative_rms: float
    max_abs: float
    passed: bool


@dataclass(frozen=True)
class Agreement:
    """Greedy replies of one runner against the reference's: how many are equal, and where the others part from it.

    A parting at a gap within the runner's tolerance is a tie: an error that is allowed may decide it either way.
    """

    runner: str
    prompts: int
    divergences: Sequence[Divergence]
    tolerance: float

    @property
    def equal(self) -> int:
        """Replies that are the reference's, token by token."""
        return self.prompts - len(self.divergences)

    @property
    def ties(self) -> int:
        """Replies that part at a tie."""
        return sum(p.gap <= self.tolerance for p in self.divergences)

    @property
    def passed(self) -> bool:
        """Whether every reply is equal or parts at a tie."""
        return self.equal + self.ties == self.prompts

    def __str__(self) -> str:
        text = f"{self.equal} of {self.prompts} replies equal"
        return text + (f", {len(self.divergences)} part, {self.ties} of them at a tie" if self.divergences else "")


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of a comparison.

    `reference` is the first runner that ran, which most points are compared with: `outside`, unless that could not run;
    `greedy` is, by runner, the share of positions whose most probable token is the reference's; `skipped` says why a
    runner could not run; `shown` says what pictures and videos were in prompts of their own; `twins` names, by runner,
    the one whose rounding it shares: it may be off by TWIN_SHARE times what that one is, besides its tolerance.
    """

    artifact: str
    outside: str
    reference: str
    tokens: int
    shown: Sequence[str]
    tolerances: Mapping[str, float]
    differences: Sequence[Difference]
    greedy: Mapping[str, float]
    replies: Sequence[Agreement]
    skipped: Mapping[str, str]
    twins: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something was compared with the outside reference, and all is within its runner's tolerance."""
        verdicts = [d.passed for d in self.differences] + [a.passed for a in self.replies]
        return self.reference == self.outside and bool(self.differences) and all(verdicts)

    def text(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self) | {"passed": self.passed}, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all."""
        write_atomically(path, self.text().encode())


def collect(
    makers: Mapping[str, Callable[[], Runner]],
    ids: np.ndarray,
    prompts: Sequence[Sequence[int]] = (),
    log: Callable[[str], None] = lambda line: None,
    shown: Sequence[Shown] = (),
) -> Collected:
    """Run every runner on `ids` and, where it replies, on `prompts`, and where it sees, on `shown`, one by one.

    Args:
        makers: makes each runner by name, the outside reference first; one that raises a DeltaRTError is skipped with
            its reason.
    """
    found = Collected(len(ids), len(prompts), next(iter(makers)), [str(one) for one in shown])
    reference: tuple[Runner, list[list[int]]] | None = None
    for name, make in makers.items():
        try:
            log(f"running {name}")
            runner = make()
            began = time.perf_counter()
            outputs = runner.points(ids)
            if runner.sees is not None:
                for one in shown:
                    log(f"{name}: {one}")
                    outputs |= {f"{one.name}.{point}": array for point, array in runner.sees(one).items()}
            found.outputs.add([outputs], time.perf_counter() - began, name)
            if prompts and runner.reply is not None:
                log(f"{name}: {len(prompts)} replies")
                replies = [runner.reply(prompt) for prompt in prompts]
                reference = reference or (runner, replies)
                found.divergences[name] = _divergences(*reference, prompts, replies)
        except DeltaRTError as error:
            found.skipped[name] = "; ".join(filter(None, (error.found, error.hint)))
            log(f"{name} skipped: {error.found}")
    return found


def _divergences(
    reference: Runner, expected: Sequence[list[int]], prompts: Sequence[Sequence[int]], replies: Sequence[list[int]]
) -> list[Divergence]:
    found = []
    for number, (mine, theirs) in enumerate(zip(replies, expected, strict=True)):
        if mine == theirs:
            continue
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
        if at is None:  # one stopped where the other went on
            found.append(Divergence(number, min(len(mine), len(theirs)), math.inf))
            continue
        logits = reference.points(np.array([*prompts[number], *theirs[:at]], np.int64))["logits"][-1].astype(np.float64)
        gap = abs(logits[theirs[at]] - logits[mine[at]]) / np.sqrt(np.mean(logits**2))
        found.append(Divergence(number, at, float(gap)))
    return found


def judge(
    artifact: Path, found: Collected, tolerances: Mapping[str, float], twins: Mapping[str, str] = MappingProxyType({})
) -> VerifyReport:
    """Compare what was collected, each point with that of the first runner that has it.

    Args:
        tolerances: relative RMS allowed to each runner.
        twins: runners that are allowed TWIN_SHARE times what another one, their twin, is off at a point, besides.
    """
    results = {name: iterations[0] for name, iterations in found.outputs.items()}
    reference, *others = results or [""]
    best = {name: result["logits"].argmax(-1) for name, result in results.items()}
    greedy = {name: float(np.mean(best[name] == best[reference])) for name in others}
    _, *rest = found.divergences or [""]
    twins = {name: twin for name, twin in twins.items() if name in results and twin in results}
    replies = [
        Agreement(
            name, found.prompts, found.divergences[name],
            logits_of(tolerances, name) + _off(results, twins.get(name), results[reference], "logits"),
        )
        for name in rest
    ]  # fmt: skip
    return VerifyReport(
        str(artifact), found.outside, reference, found.tokens, found.shown, dict(tolerances),
        _compared(results, tolerances, twins), greedy, replies, found.skipped, twins,
    )  # fmt: skip


def _off(results: Mapping[str, IterationResult], twin: str | None, expected: IterationResult, point: str) -> float:
    """What a runner with that twin is allowed at a point besides its own tolerance."""
    if twin is None or point not in results[twin] or twin == expected.runner_name:
        return 0.0
    return TWIN_SHARE * relative_rms(np.asarray(results[twin][point]), np.asarray(expected[point]))


def _compared(
    results: Mapping[str, IterationResult], tolerances: Mapping[str, float], twins: Mapping[str, str]
) -> list[Difference]:
    """By runner, in the order of the one with the most points."""
    names, seen, found = list(results), set[str](), list[Difference]()
    for place, base in enumerate(names):
        fresh = [point for point in results[base] if point not in seen]
        seen |= set(fresh)
        for other in names[place + 1 :]:
            off = {point: _off(results, twins.get(other), results[base], point) for point in fresh}
            found += _differences(results[base], results[other], off, tolerances)
    longest = max((list(result) for result in results.values()), key=len, default=[])
    order = {point: place for place, point in enumerate(longest)}
    return sorted(found, key=lambda d: (names.index(d.runner), order.get(d.point, len(order))))


def _differences(
    expected: IterationResult, other: IterationResult, points: Mapping[str, float], tolerances: Mapping[str, float]
) -> list[Difference]:
    """Those of `points` that `other` has, with what each allows besides; infinite where shapes differ or a value is not
    finite."""
    differences = []
    for point in (point for point in points if point in other):
        found, right = np.asarray(other[point]), np.asarray(expected[point])
        error, largest = math.inf, math.inf
        if found.shape == right.shape and math.isfinite(finite := relative_rms(found, right)):
            error, largest = finite, float(np.abs(found.astype(np.float32) - right).max(initial=0.0))
        names = (point, other.runner_name, expected.runner_name)
        tolerance = tolerance_of(tolerances, other.runner_name, point)
        differences.append(Difference(*names, error, largest, error <= allowed(tolerance, point) + points[point]))
    return differences
