"""What a structure costs: to compile, and at each token of a reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deltart.runtime.sampling.constraint import Constraint
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.runtime.structure.compiler import Compiled
from deltart.runtime.text.tokenizer import Tokenizer


@dataclass
class Costs:
    """Microseconds of processor time of each call, and whether the whole reply was allowed."""

    masks: list[float] = field(default_factory=list)
    accepts: list[float] = field(default_factory=list)
    permits: list[float] = field(default_factory=list)
    free: int = 0  # tokens without a mask
    complete: bool = False


def walk(compiled: Compiled, tokenizer: Tokenizer, reply: str, costs: Costs, drafts: int = 0) -> bool:
    """Feed a reply token by token as a step does; whether every token and then the end were allowed."""
    tokens = [*tokenizer.encode(reply), min(tokenizer.eos_ids)]
    constraint = compiled.matcher(thinking=False)
    costs.complete = False
    for place, token in enumerate(tokens):
        if drafts:
            costs.permits.append(_timed(lambda place=place: constraint.permits(tokens[place : place + drafts]))[0])
        if not _take(constraint, token, costs):
            return False
    costs.complete = True
    return True


def _take(constraint: Constraint, token: int, costs: Costs) -> bool:
    spent, mask = _timed(constraint.allowed)
    if mask is None:
        costs.free += 1
    else:
        costs.masks.append(spent)
        if not int(mask.view(np.uint32)[token >> 5]) >> (token & 31) & 1:
            return False
    costs.accepts.append(_timed(lambda: constraint.accept(token))[0])
    return True


def masking(vocabulary: int) -> float:
    """Milliseconds that the sampler takes longer over a row for being given a mask, greedy."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(vocabulary).astype(np.float32)
    mask = rng.integers(-(2**31), 2**31, -(-vocabulary // 32), dtype=np.int32)
    sampler = Sampler(SamplingParams(temperature=0), [], vocabulary)
    with_mask = min(_timed(lambda: sampler.choose(logits, mask))[0] for _ in range(50))
    return (with_mask - min(_timed(lambda: sampler.choose(logits))[0] for _ in range(50))) / 1e3


def percentiles(values: Iterable[float], *wanted: float) -> list[float]:
    """Of values; NaN where there are none."""
    found = list(values)
    return [float(np.percentile(found, each)) if found else float("nan") for each in wanted]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.thread_time()  # of this thread alone: the machine's other work does not count
    result = work()
    return (time.thread_time() - began) * 1e6, result
