"""`deltart merge` from its arguments on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltart.cli import main
from deltart.export.merge import pipeline
from support.adapters import linears, write_adapter
from support.calibration import write_tiny


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    base = write_tiny(tmp_path / "base")
    config = {"lora_dtype": "float32"}
    adapter = write_adapter(tmp_path / "adapter", base, linears(base), config=config)
    return ["merge", str(base), str(adapter), "-o", str(tmp_path / "out")]


def test_says_what_came_of_it(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    output, errors = capsys.readouterr()
    assert "out: 31 tensors merged (31 lora), " in output
    steps = ["31 tensors of 71 to merge", "which are left aside: lora_dtype", "copying what stays"]
    assert all(step in errors for step in steps)


def test_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"] == {"lora": 31} and found["base_model"] == "family/base"
    assert found["checkpoint"] == command[-1] and len(found["notes"]) == 1


def test_overwrite(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0
    assert main(command) == 2 and "--overwrite a merged checkpoint" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_what_does_not_fit_ends_with_2(command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_adapter(tmp_path / "other", tmp_path / "base", ["lm_head"], config={"peft_type": "LOHA"})
    assert main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 2
    assert "peft_type is 'LOHA'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_ctrl_c_says_that_the_work_goes_on(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_bring", interrupted)
    assert main(command) == 130 and "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 0 and "31 of them done before" in capsys.readouterr().err
