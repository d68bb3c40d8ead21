"""Signals that end a command: it cleans up as after Ctrl-C, and says so."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.signals import restore


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "deltart", "synth", "mid", "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restore)
    while not list(tmp_path.glob(".out.partial-*/out/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "nothing was left half-written" in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_nohup_stays() -> None:
    script = "import signal; from deltart.cli.signals import raise_on_termination as r; r(); "
    script += "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    command = ["sh", "-c", 'trap "" HUP; exec "$0" -c "$1"', sys.executable, script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
