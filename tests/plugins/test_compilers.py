"""Compilers as children: their failures, deaths and interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltart.errors import BuildError
from deltart.plugins.compilers import compile_with, in_parallel
from support.signals import restore

SOURCE = Path("a.cu")


def test_what_it_said_is_returned_or_raised() -> None:
    assert compile_with(["sh", "-c", "echo one; echo two >&2"], SOURCE) == "one\ntwo\n"
    with pytest.raises(BuildError, match=r"sh could not compile a\.cu:\nno such header"):
        compile_with(["sh", "-c", "echo no such header; exit 1"], SOURCE)
    with pytest.raises(BuildError, match="can't be run"):
        compile_with(["/nowhere/nvcc"], SOURCE)


@pytest.mark.parametrize("name", ["SEGV", "KILL", "ABRT"])
def test_a_compiler_that_dies_is_an_error(name: str) -> None:
    with pytest.raises(BuildError, match=f"ended by SIG{name}"):
        compile_with(["sh", "-c", f"ulimit -c 0; kill -{name} $$"], SOURCE)


def test_one_that_dies_takes_no_other_work_with_it(tmp_path: Path) -> None:
    def compile_one(number: int) -> str:
        death = "kill -SEGV $$" if number == 0 else f"sleep 0.2; touch {tmp_path / str(number)}"
        return compile_with(["sh", "-c", f"ulimit -c 0; {death}"], SOURCE)

    with pytest.raises(BuildError, match="SIGSEGV"):
        in_parallel(compile_one, range(4), 2)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}


RUN = """
import sys
from pathlib import Path
from deltart.plugins.compilers import compile_with, in_parallel
command = ["sh", "-c", "sleep 60 & echo $! > " + sys.argv[1] + "; wait"]
in_parallel(lambda n: compile_with(command, Path("a.cu")), range(9), 1)
"""


def test_an_interrupt_ends_the_compilers_and_their_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = [sys.executable, "-c", RUN, str(note)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=restore) as parent:
        while not (note.exists() and note.read_text().strip()):
            time.sleep(0.05)
        began = time.monotonic()
        parent.send_signal(signal.SIGINT)
        parent.wait(30)
    assert time.monotonic() - began < 20
    grandchild = int(note.read_text())
    for _ in range(100):
        try:
            os.kill(grandchild, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{grandchild}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the compiler's child goes on")
