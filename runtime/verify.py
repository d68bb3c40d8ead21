"""Compares runners of one model point by point: every block's hidden state, the final one, and the logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from deltart.errors import DeltaRTError
from deltart.runtime.backends.base import Backend
from deltart.runtime.inputs import text_inputs

# Token ids [T] -> arrays [T, ...] by point: "embed.h", "layers.0.h", ..., "hidden", "logits".
Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Difference:
    """One point of one runner against the reference: ||a - b|| / ||b|| and max |a - b|."""

    point: str
    runner: str
    relative_rms: float
    max_abs: float


@dataclass(frozen=True)
class Report:
    """The outcome of a comparison.

    `greedy` is, by runner, the share of positions whose most probable token is the reference's; `skipped` says
    why a runner could not run. `passed`: every point of every runner kept to its tolerance.
    """

    artifact: str
    reference: str
    tokens: int
    tolerances: Mapping[str, float]
    differences: Sequence[Difference]
    greedy: Mapping[str, float]
    skipped: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every runner kept to its tolerance, and at least one was compared."""
        return bool(self.differences) and all(d.relative_rms <= self.tolerances[d.runner] for d in self.differences)

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self) | {"passed": self.passed}, indent=1) + "\n", encoding="utf-8")


def backend_runner(backend: Backend, points: Sequence[str], prefill: int) -> Runner:
    """A runner that feeds `prefill` tokens in one call and the others one by one, as generation does.

    `points` are the outputs of the text graph to collect, "hidden" and "logits" besides.
    """

    def run(ids: np.ndarray) -> dict[str, np.ndarray]:
        state = backend.new_state("model", 1, len(ids))
        names = [*points, "hidden", "logits"]
        parts: list[list[np.ndarray]] = []
        for begin, end in [(0, prefill), *((i, i + 1) for i in range(prefill, len(ids)))]:
            inputs = text_inputs(
                ids[None, begin:end], np.array([begin], np.int32), logit_index=np.arange(end - begin)[None]
            )
            parts.append([array[0] for array in backend.run("model", state, inputs, names)])
        return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}

    return run


def compare(
    artifact: Path,
    runners: Mapping[str, Callable[[], Runner]],
    tolerances: Mapping[str, float],
    ids: np.ndarray,
    report: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run every runner on `ids`; the first that runs is the reference.

    Args:
        runners: makes each runner by name; one that raises a DeltaRTError is skipped with its reason.
        tolerances: relative RMS allowed to each.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    skipped: dict[str, str] = {}
    for name, make in runners.items():
        try:
            report(f"running {name}")
            found[name] = make()(ids)
        except DeltaRTError as error:
            skipped[name] = str(error).replace("\n", " ")
            report(f"{name} skipped: {error.found}")
    reference = next(iter(found), "")
    others = [name for name in found if name != reference]
    differences = [
        Difference(point, name, *_distance(found[name][point], found[reference][point]))
        for name in others
        for point in found[reference]
        if point in found[name]
    ]
    best = {name: arrays["logits"].argmax(-1) for name, arrays in found.items()}
    greedy = {name: float(np.mean(best[name] == best[reference])) for name in others}
    return Report(str(artifact), reference, len(ids), dict(tolerances), differences, greedy, skipped)


def _distance(array: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    difference = array.astype(np.float64) - reference
    if not np.isfinite(difference).all():
        return float("inf"), float("inf")
    scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    return float(np.sqrt(np.mean(difference**2))) / max(scale, 1e-30), float(np.abs(difference).max())
