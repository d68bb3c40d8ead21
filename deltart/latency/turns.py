"""Measuring several engines in turns: whatever else the machine does meanwhile, it does to all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from deltart.latency.cases import Case
from deltart.latency.child import Child

Open = Callable[[], Child]  # a new process that was told to open its engine, and has not answered yet
Samples = dict[str, dict[str, list[list[list[float]]]]]  # seconds by case, arm, launch, round
WARM_UP = 1  # samples of each case that are thrown away


@contextmanager
def launched(arms: Mapping[str, Open], rng: random.Random) -> Iterator[dict[str, Child]]:
    """A process for each arm, started side by side in random order."""
    with ExitStack() as stack:
        children = {arm: stack.enter_context(arms[arm]()) for arm in shuffled(arms, rng)}
        for child in children.values():
            child.answer()
        yield children


def launch(arms: Mapping[str, Open], cases: Sequence[Case], rounds: int, rng: random.Random, samples: Samples,
           step: Callable[[str], None] = lambda name: None) -> None:  # fmt: skip
    """Start every arm's process anew and add `rounds` rounds of every case to `samples`.

    Cases, and within a case the arms, come in random order in each round. Processes of one program differ by a few
    percent for as long as they live, which only further launches average out.
    """
    with launched(arms, rng) as children:
        for case in cases:
            for arm in children:
                samples.setdefault(case.name, {}).setdefault(arm, []).append([])
                for _ in range(WARM_UP):
                    case.sample(children[arm])
        for _ in range(rounds):
            for case in shuffled(cases, rng):
                step(case.name)
                for arm in shuffled(children, rng):
                    samples[case.name][arm][-1].append(case.sample(children[arm]))


def shuffled(items: Mapping[str, object] | Sequence[Case], rng: random.Random) -> list:  # type: ignore[type-arg]
    """The items, or the names of a mapping, in random order."""
    order = list(items)
    rng.shuffle(order)
    return order
