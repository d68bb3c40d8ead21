"""What an engine has done and is doing, as numbers; and the events that histograms are made of."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from deltart.runtime.memory_plan import MemoryPlan
from deltart.runtime.schedule.draft_policy import DraftPolicy
from deltart.runtime.schedule.prefix_cache import PrefixCache
from deltart.runtime.schedule.scheduler import Scheduler
from deltart.runtime.sequence import Delta, Sequence


@dataclass(frozen=True)
class TokenEvent:
    """Tokens that a reply was given: how many, whether they are its first, and seconds since those before."""

    tokens: int
    first: bool
    seconds: float


@dataclass(frozen=True)
class EndEvent:
    """A reply that ended, for this reason."""

    sequence: Sequence
    reason: str


Listener = Callable[[TokenEvent | EndEvent], None]


@dataclass
class Metrics:
    """Live figures of one engine; reading them takes no lock and may be a step behind."""

    scheduler: Scheduler
    cache: PrefixCache | None
    drafts: DraftPolicy
    plan: MemoryPlan
    finished: Counter[str] = field(default_factory=Counter)
    listeners: list[Listener] = field(default_factory=list)
    _last: dict[int, float] = field(default_factory=dict)

    @property
    def running(self) -> int:
        """Sequences that have a slot."""
        return len(self.scheduler.active)

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self.scheduler.waiting)

    @property
    def tokens_held(self) -> int:
        """Tokens of K/V in use, of `plan.tokens`."""
        return self.scheduler.tokens_held

    def delivered(self, sequence: Sequence, delta: Delta) -> None:
        """Note what a step gave a reply; the engine's side."""
        now, key = time.monotonic(), id(sequence)
        if delta.tokens and self.listeners:
            before = self._last.get(key)
            event = TokenEvent(len(delta.tokens), before is None, now - (before or sequence.arrived))
            self._last[key] = now
            for listener in self.listeners:
                listener(event)
        if delta.finish_reason is not None:
            self._last.pop(key, None)
            self.finished[delta.finish_reason] += 1
            for listener in self.listeners:
                listener(EndEvent(sequence, delta.finish_reason))
