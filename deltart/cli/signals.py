"""SIGTERM and SIGHUP end a command as Ctrl-C does: what it had begun is cleaned up."""

from __future__ import annotations

import signal
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """A signal that ends the process came; `number` is its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def ending(stop: KeyboardInterrupt) -> tuple[str, int]:
    """How to say what ended a command, and its exit code: 128 + N for signal N."""
    if isinstance(stop, Terminated):
        return "terminated", 128 + stop.number
    return "interrupted", 128 + signal.SIGINT


def raise_on_termination() -> None:
    """From now on SIGTERM and SIGHUP raise Terminated in the main thread. One that is ignored (nohup) stays so."""
    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one does not wait for the cleaning
    raise Terminated(number)
