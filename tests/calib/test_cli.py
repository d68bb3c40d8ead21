"""`deltart calibrate` from its arguments on."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from deltart.calib import cli
from deltart.calib.dataset import DEFAULT


@pytest.mark.parametrize(
    ("extra", "method", "data"),
    [
        ([], "hessian", DEFAULT),
        (["--method", "absmax"], "absmax", None),
        (["--method", "absmax", "--kv-cache"], "absmax", DEFAULT),
        (["--method", "mse", "--data", "default"], "mse", DEFAULT),
        (["--data", "my.jsonl", "--modules", "mlp", "o_proj"], "hessian", Path("my.jsonl")),
    ],
)
def test_arguments(extra: list[str], method: str, data: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    parser, called = argparse.ArgumentParser(), {}
    cli.add_arguments(parser)

    class CalledError(Exception):
        pass

    def fake(checkpoint: Path, output: Path, **arguments: object) -> None:
        called.update(arguments, checkpoint=checkpoint, output=output)
        raise CalledError

    monkeypatch.setattr(cli, "calibrate", fake)
    with pytest.raises(CalledError):
        cli.run(parser.parse_args(["in", "-o", "out", *extra]))
    assert (called["checkpoint"], called["output"]) == (Path("in"), Path("out"))
    assert (called["method"], called["data"]) == (method, data)
    assert called["modules"] == (["mlp", "o_proj"] if "--modules" in extra else None)


def test_prints_what_came_of_it(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    cli.run(parser.parse_args([str(tiny), "-o", str(tmp_path / "out"), "--method", "absmax"]))
    printed = capsys.readouterr().out
    assert "100%" in printed and "min left" in printed and "32 linears quantized" in printed
