"""How every long command shows what it does, on standard error."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deltart.cli.screen import console, line


class Steps:
    """A line with its time for each step; below them, on a terminal, a bar for what is being done."""

    def __init__(self, now: str, screen: Console | None = None) -> None:
        """`now` is what is being done first; `screen` is standard error when None."""
        self._console = screen or console(stderr=True)
        columns = (TextColumn("          {task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._began = time.perf_counter()
        self._task = self._bar.add_task(now, total=None)

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    def line(self, step: str) -> None:
        """A step begins or is done."""
        self._console.print(line(f"{self.seconds:6.1f} s  ", "dim") + line(step))
        self.now(step.split(":")[0])

    def now(self, what: str) -> None:
        """What is being done, for as long as it takes; a log has no line of it."""
        self._bar.reset(self._task, description=what, total=None)

    def progress(self, share: float) -> None:
        """`share` of it is done."""
        self._bar.update(self._task, total=1.0, completed=share)
