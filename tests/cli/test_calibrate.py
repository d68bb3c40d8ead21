"""`deltart calibrate` from its arguments on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deltart.calib import pipeline
from deltart.calib.dataset import DEFAULT
from deltart.cli import main
from support.calibration import write_tiny


@pytest.mark.parametrize(
    ("extra", "method", "data"),
    [
        ([], "hessian", DEFAULT),
        (["--method", "absmax"], "absmax", None),
        (["--method", "absmax", "--kv-cache"], "absmax", DEFAULT),
        (["--method", "mse", "--data", "default"], "mse", DEFAULT),
        (["--method", "absmax", "--budget", "0.1"], "absmax", DEFAULT),
        (["--data", "my.jsonl", "--modules", "mlp", "o_proj"], "hessian", Path("my.jsonl")),
    ],
)
def test_arguments(extra: list[str], method: str, data: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, object] = {}

    class CalledError(BaseException):
        pass

    def fake(checkpoint: Path, output: Path, **arguments: object) -> None:
        called.update(arguments, checkpoint=checkpoint, output=output)
        raise CalledError

    monkeypatch.setattr(pipeline, "calibrate", fake)
    with pytest.raises(CalledError):
        main(["calibrate", "in", "-o", "out", *extra])
    assert (called["checkpoint"], called["output"]) == (Path("in"), Path("out"))
    assert (called["method"], called["data"]) == (method, data)
    assert called["modules"] == (["mlp", "o_proj"] if "--modules" in extra else None)


def test_prints_what_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = write_tiny(tmp_path / "checkpoint")
    assert main(["calibrate", str(tiny), "-o", str(tmp_path / "out"), "--method", "absmax"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^ +\d+\.\d s  1/1 quantizing 100%  0:00:00 left", printed.err, re.MULTILINE)
    assert printed.out.startswith("32 linears quantized")


def test_ctrl_c_says_that_the_work_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_tiny(tmp_path / "checkpoint")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["calibrate", str(tiny), "-o", str(tmp_path / "out"), "--method", "absmax"]
    monkeypatch.setattr(pipeline, "_write_side_files", interrupted)
    assert main(command) == 130 and "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 0 and "32 done before" in capsys.readouterr().err
