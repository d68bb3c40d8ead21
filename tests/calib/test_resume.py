"""Interrupted calibrations: the same bytes as one that was left alone, whatever was lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltart.calib.pipeline import calibrate
from deltart.errors import CalibrationError, OutputError

Made = Callable[[str], Path]


class Killed(BaseException):
    """Ends a run the way a kill does: nothing of ours gets to tidy up after it."""


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def run_until(line: int, tiny: Path, output: Path, text: Path, method: str) -> bool:
    """Start (or go on with) a calibration and kill it after `line` lines; whether it got to its end first."""
    left = [line]

    def log(_: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    try:
        calibrate(tiny, output, method=method, data=text, kv_cache=True, activations=True, log=log)  # type: ignore
    except Killed:
        return False
    return True


def test_killed_again_and_again(tiny: Path, text: Path, calibrated: Made, tmp_path: Path) -> None:
    output, rng = tmp_path / "out", np.random.default_rng(5)
    runs = 0
    while not run_until(int(rng.integers(1, 14)), tiny, output, text, "hessian"):
        assert not output.exists()
        runs += 1
    assert runs >= 2 and contents(output) == contents(calibrated("hessian"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["journal cut short", "weights lost", "importance lost"])
def test_work_that_can_not_be_trusted_is_done_again(
    damage: str, tiny: Path, text: Path, calibrated: Made, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert not run_until(20, tiny, output, text, "hessian")
    staging = tmp_path / ".out.partial"
    journal = staging / ".calibration" / "journal.jsonl"
    if damage == "journal cut short":
        journal.write_bytes(journal.read_bytes()[:-37])
    elif damage == "weights lost":  # as when the machine loses power before the disk has the data
        weights = staging / "out" / "model.safetensors"
        raw = bytearray(weights.read_bytes())
        raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
        weights.write_bytes(raw)
    else:
        (staging / ".calibration" / "model.layers.0.importance.pt").unlink()
    assert run_until(1000, tiny, output, text, "hessian")
    assert contents(output) == contents(calibrated("hessian")) and not staging.exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"method": "mse"}, "with other --method"),
        ({"keep": ["layers.1.mlp"]}, "with other --modules or --keep"),
        ({"kv_cache": False}, "with other --kv-cache"),
        ({"data": "more.jsonl"}, "with other text"),
    ],
)
def test_unfinished_work_of_other_arguments_is_not_thrown_away(
    other: dict[str, Any], words: str, tiny: Path, text: Path, tmp_path: Path
) -> None:
    assert not run_until(6, tiny, tmp_path / "out", text, "hessian")
    journal = tmp_path / ".out.partial" / ".calibration" / "journal.jsonl"
    before = journal.read_bytes()
    if "data" in other:
        other = {"data": tmp_path / other["data"]}
        other["data"].write_text(text.read_text() * 2)
    arguments = {"method": "hessian", "data": text, "kv_cache": True} | other
    with pytest.raises(CalibrationError, match=words):
        calibrate(tiny, tmp_path / "out", **arguments)
    assert before and journal.read_bytes() == before


def absmax_killed_while_copying(tiny: Path, output: Path) -> None:
    """The quickest calibration there is, killed when every weight is done."""

    def log(line: str) -> None:
        if line.startswith("copying"):
            raise Killed

    with pytest.raises(Killed):
        calibrate(tiny, output, method="absmax", log=log)


def test_two_runs_do_not_share_the_work(tiny: Path, tmp_path: Path) -> None:
    def log(_: str) -> None:
        with pytest.raises(CalibrationError, match="another run is at work"):
            calibrate(tiny, tmp_path / "out", method="absmax")

    calibrate(tiny, tmp_path / "out", method="absmax", log=log)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_unfinished_work_survives_an_output_that_is_in_use(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    absmax_killed_while_copying(tiny, output)
    output.mkdir()
    (output / "precious").touch()
    with pytest.raises(OutputError, match="already in use"):
        calibrate(tiny, output, method="absmax")
    (output / "precious").unlink()
    said: list[str] = []
    calibrate(tiny, output, method="absmax", log=said.append)
    assert "32 done before" in said[0] and (output / "report.json").exists()


def test_output_that_can_not_be_renamed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the working directory, or a mount point: the work lies inside until it is done."""
    calibrate(tiny, tmp_path / "other", method="absmax")
    output = tmp_path / "out"
    output.mkdir()
    monkeypatch.chdir(output)
    absmax_killed_while_copying(tiny, Path("."))
    assert [p.name for p in output.iterdir()] == [".out.partial"]
    calibrate(tiny, Path("."), method="absmax")
    assert contents(output) == contents(tmp_path / "other")


SCRIPT = """
import sys
from pathlib import Path
from deltart.calib.pipeline import calibrate
checkpoint, output, text = map(Path, sys.argv[1:])
arguments = dict(method="hessian", data=text, kv_cache=True, activations=True)
calibrate(checkpoint, output, **arguments, log=lambda line: print(line, flush=True))
"""


@pytest.mark.slow
def test_sigkill_at_random_moments(tiny: Path, text: Path, calibrated: Made, tmp_path: Path) -> None:
    output, rng, kills = tmp_path / "out", np.random.default_rng(0), 0
    while True:
        command = [sys.executable, "-c", SCRIPT, str(tiny), str(output), str(text)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # imports are over
        time.sleep(float(rng.uniform(0, 1.5)))
        if kills < 6 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    assert kills >= 1 and contents(output) == contents(calibrated("hessian"))
