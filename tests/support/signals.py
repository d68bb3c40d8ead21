"""Signals in children, whatever the tests themselves run under: nohup and background jobs ignore some."""

from __future__ import annotations

import signal


def restore() -> None:
    """What to call in a child before its program starts: the signals that end a command do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
