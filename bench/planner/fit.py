"""The planner's factors: fitted to the published figures, and what they miss when a figure is left out of the fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from bench.planner.anchors import ANCHORS, Anchor
from deltart.planner.predict import Factors
from deltart.planner.traffic import Model

# Values that a factor may take. Decode has the first three to itself, prompts the last two.
GRIDS: Mapping[str, Sequence[float]] = {
    "bandwidth": [x / 100 for x in range(40, 101)],
    "layer_seconds": [x * 1e-6 for x in range(0, 121, 2)],
    "row_seconds": [x * 1e-6 for x in range(0, 601, 20)],
    "arithmetic": [x / 100 for x in range(20, 91)],
    "request_seconds": [x * 1e-3 for x in range(0, 151, 5)],
}
DECODE, PROMPTS = ("bandwidth", "layer_seconds", "row_seconds"), ("arithmetic", "request_seconds")
START = Factors(bandwidth=0.85, arithmetic=0.5, layer_seconds=50e-6, row_seconds=100e-6, request_seconds=0.08)
SWEEPS = 6


def fit(models: Mapping[str, Model], anchors: Sequence[Anchor] = ANCHORS) -> Factors:
    """The factors with the least mean absolute log error: decode's first, then, with those, the prompts'.

    One factor after the other takes its best value, in sweeps over all of them.
    """
    decode, prompts = [a for a in anchors if a.decode], [a for a in anchors if not a.decode]
    return _descend(PROMPTS, prompts, models, _descend(DECODE, decode, models, START))


def left_out(models: Mapping[str, Model], anchors: Sequence[Anchor] = ANCHORS) -> list[float]:
    """The relative error of each figure, predicted with factors that were fitted to all others."""
    return [a.error(models, fit(models, [other for other in anchors if other is not a])) for a in anchors]


def median_errors(errors: Sequence[float], anchors: Sequence[Anchor] = ANCHORS) -> tuple[float, float]:
    """The median absolute error of decode, and that of prompts."""
    pairs = list(zip(anchors, errors, strict=True))
    return median(abs(e) for a, e in pairs if a.decode), median(abs(e) for a, e in pairs if not a.decode)


def _loss(anchors: Sequence[Anchor], models: Mapping[str, Model], factors: Factors) -> float:
    return fmean(abs(math.log1p(a.error(models, factors))) for a in anchors)


def _descend(names: Sequence[str], anchors: Sequence[Anchor], models: Mapping[str, Model], start: Factors) -> Factors:
    found = start
    for _ in range(SWEEPS):
        before = found
        for name in names:
            choices = [replace(found, **{name: value}) for value in GRIDS[name]]
            found = min(choices, key=lambda factors: _loss(anchors, models, factors))
        if found == before:
            break
    return found
