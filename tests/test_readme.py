"""What the README shows does work: its commands exist, its Python runs, its targets are in the Makefile."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deltart.cli import main, parser
from support.adapters import linears, write_adapter

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = list(dict.fromkeys(re.findall(r"^deltart (.+?)(?:\s+#.*)?$", README, re.MULTILINE)))
CHECKPOINT = ROOT / "tools" / "nano" / "checkpoint"
LONGEST_SCREEN = 40  # lines
STEP = re.compile(r" +\d+\.\d s  ")  # what an export shows while it runs
NUMBER = re.compile(r"\d+(\.\d+)? (s|tok/s)\b")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    parsed = parser().parse_args(shlex.split(command))
    assert callable(parsed.run)


def test_the_first_screen_is_what_one_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands print what it shows, times aside, on a terminal of 80 columns that knows no colour."""
    screen = re.findall(r"```console\n(.+?)```", README, re.DOTALL)[0]
    assert screen in "\n".join(README.splitlines()[:LONGEST_SCREEN])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    for part in screen.split("$ ")[1:]:
        command, shown = part.split("\n", 1)
        assert main(shlex.split(command)[1:]) == 0
        output, errors = capsys.readouterr()
        beside = [line for line in errors.splitlines(True) if not STEP.match(line)]
        thinking, figures = ("".join(line for line in beside if line.startswith("[") == last) for last in (False, True))
        found = thinking + output + figures
        assert NUMBER.sub("N", found) == NUMBER.sub("N", shown)
        assert max(map(len, shown.splitlines())) <= 80


def test_the_first_screen_says_what_it_costs_and_where_it_stands() -> None:
    first = "\n".join(README.splitlines()[:LONGEST_SCREEN])
    assert all(
        text in first
        for text in ("**What it costs.**", "**Where it stands.**", "on an H100", "none has run on a GPU yet")
    )


def test_commands_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its shell blocks, in their order, on the built-in checkpoint; a server would not end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "models").symlink_to(CHECKPOINT)
    write_adapter(tmp_path / "adapters", CHECKPOINT, linears(CHECKPOINT))
    for command in COMMANDS:
        words = [re.sub(r"^/(models|adapters)/.+", r"\1", word) for word in shlex.split(command)]
        if words[0] not in ("serve", "chat"):
            assert main(words + (["--max-new-tokens", "4"] if words[0] == "generate" else [])) == 0


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z][a-z0-9-]*)", README))))
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
    exec(code.replace("/models/Qwen3.6-27B-FP8", str(CHECKPOINT)), {})
    assert capsys.readouterr().out
    assert main(["generate", "artifacts/qwen27", "Once", "--max-new-tokens", "2"]) == 0
