"""A folder's lock: one process at a time, released by a kill, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from deltart.locks import locked

HOLD = "import sys; from pathlib import Path; from deltart.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"


def test_the_second_waits_for_the_first_and_a_kill_releases(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "in\n"
        waited: list[bool] = []

        def waiting() -> None:
            waited.append(True)
            os.kill(first.pid, signal.SIGKILL)

        with locked(tmp_path, waiting):
            assert waited == [True]
    with locked(tmp_path, lambda: waited.append(False)):
        assert waited == [True]
    assert list(tmp_path.iterdir()) == []
