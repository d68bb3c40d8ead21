"""What the README shows does work: its commands exist, its Python runs, its targets are in the Makefile."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deltart.cli import main, parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^deltart (.+?)(?:\s+#.*)?$", README, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    parsed = parser().parse_args(shlex.split(command))
    assert callable(parsed.run)


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z-]+)", README))))
def test_flags_exist(flag: str) -> None:
    actions = parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
    assert any(flag in a.option_strings for command in actions for a in command._actions)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The snippet as it stands, on the built-in checkpoint."""
    code = re.findall(r"```python\n(.+?)```", README, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    exec(code.replace("/models/Qwen3.6-27B-FP8", str(ROOT / "tools" / "nano" / "checkpoint")), {})
    assert capsys.readouterr().out
    assert main(["generate", "artifacts/qwen27", "Once", "--max-new-tokens", "2"]) == 0
