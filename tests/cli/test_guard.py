"""Every way in which a command can end: a code, a few lines, no traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltart.cli import guard
from deltart.cli.signals import Terminated
from deltart.errors import ConfigError

SIGTERM = 15


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


ENDS: dict[str, tuple[BaseException, int, str]] = {
    "a deliberate error": (ConfigError("a is b", "c", "d"), 2, "deltart: error: a is b\n  expected: c\n\nhint: d\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "deltart: interrupted\n"),
    "SIGTERM": (Terminated(SIGTERM), 143, "deltart: terminated\n"),
    "no file": (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 2, "/x: No such file"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device"),
    "no memory": (MemoryError(), 2, "more memory than there is"),
    "codes for the terminal": (ConfigError("\x1b[2J\r\u202eevil"), 2, r"\x1b[2J\r\u202eevil"),
}


@pytest.mark.parametrize(("error", "code", "words"), ENDS.values(), ids=list(ENDS))
def test_errors_become_codes_and_messages(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.guarded(raising(error)) == code
    said = capsys.readouterr().err
    assert words in said and said.startswith("deltart: ") and "Traceback" not in said


def test_what_nobody_foresaw_is_three_lines_and_a_log(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard.tempfile, "tempdir", str(tmp_path))
    assert guard.guarded(raising(KeyError("one\ntwo" * 200))) == 70
    said = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert len(said.splitlines()) == 3 and str(log) in said and max(map(len, said.splitlines())) < 400
    text = log.read_text()
    assert "Traceback" in text and "test_guard.py" in text and "Python 3" in text
    monkeypatch.setattr(guard.tempfile, "tempdir", "/nowhere")
    assert guard.guarded(raising(KeyError("x"))) == 70
    assert "could not be kept" in capsys.readouterr().err


def test_an_exit_code_is_kept() -> None:
    assert guard.guarded(lambda: 1) == 1
    with pytest.raises(SystemExit):
        guard.guarded(raising(SystemExit(2)))


def run(script: str, **streams: object) -> subprocess.CompletedProcess[str]:
    code = f"from deltart.cli import guard, streams\nstreams.prepare()\nimport sys\n{script}"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False, **streams)  # type: ignore[call-overload]


PRINT = "def command():\n print('x' * 100000)\n return 0\nsys.exit(guard.guarded(command))"

SHOW = PRINT.replace("print(", "from deltart.cli.screen import console; console().print(")


def test_a_full_device_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = run(PRINT, stdout=full)
    assert done.returncode == 2 and done.stderr.startswith("deltart: error: No space left on device")


@pytest.mark.parametrize(
    "script", [PRINT, PRINT.replace("print(", "from deltart.cli.screen import console; console().print(")]
)
def test_a_reader_that_goes_away_is_none(script: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(script, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_streams_are_no_trouble() -> None:
    script = "def command():\n print('x', sys.stdin.read())\n open('/dev/null').close()\n return 0\n"
    script += "sys.exit(guard.guarded(command))"
    command = f'exec {sys.executable} -c "$0" <&- >&-'
    code = f"from deltart.cli import guard, streams\nimport sys\nstreams.prepare()\n{script}"
    done = subprocess.run(["bash", "-c", command, code], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
