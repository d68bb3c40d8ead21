"""The README's example runs, on the built-in checkpoint."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[3] / "runtime" / "structure" / "README.md"


def test_the_example_runs(
    nano_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(nano_artifact, tmp_path / "artifacts" / "qwen27")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert ast.literal_eval(capsys.readouterr().out)["city"] in ("Paris", "Rome")
