"""How far a phase is, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

Log = Callable[[str], None]


class Progress:
    """Says a line for every step of one phase.

    Args:
        phase: named in every line, as "2/3 comparing".
        total: the whole work, in the unit of `advance`; time left follows from the pace since this was made.
        log: called with each line.
    """

    def __init__(self, phase: str, total: float, log: Log) -> None:
        self._phase, self._total, self._log = phase, total, log
        self._done, self._start = 0.0, time.monotonic()

    def advance(self, work: float, step: str) -> None:
        """`work` more is done, `step` says which."""
        self._done += work
        left = (time.monotonic() - self._start) * (self._total / self._done - 1)
        self._log(f"{self._phase} {self._done / self._total:4.0%}  {span(left)} left  {step}")


def span(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
