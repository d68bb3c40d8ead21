"""`make engine` passes on what it is given: no quote, dollar or space of it means anything to make or to the shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAY = '#!/bin/sh\nfor word in "$@"; do printf "<%s>\\n" "$word"; done\n'
TEXTS = [
    "What's up?",
    "It costs $100",
    "$(HOME) ${HOME} $HOME",
    'say "x" `y`',
    "a; touch planted",
    "$(shell touch planted)",
    "back\\slash \\n",
    "* ? [a]",
    "-x --help",
    "# no comment",
    "two\twords",
    "日本 é",
    "100%",
]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The Makefile with commands that say what they were called with."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("deltart", "python"):
        (tmp_path / ".venv/bin" / name).write_text(SAY)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["make", "-s", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (folder / "planted").exists()
    return done.stdout.splitlines()


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_given_arrives(text: str, folder: Path) -> None:
    assert f"<{text}>" in make(folder, "engine", f"PROMPT={text}")
    words = make(folder, "engine", f"CHECKPOINT={text}", f"NAME={text}")
    assert words.count(f"<{text}>") == 2 and words.count(f"<artifacts/{text}>") == 6
    assert f"<{text}>" in make(folder, "plugins", f"INCLUDE={text}")
    words = make(folder, "engine", f"IMAGE={text}")
    assert words[words.index("<--image>") + 1] == f"<{text}>"
    assert f"<{text}>" in make(folder, "gpu", f"CHECKPOINT={text}")


def test_heldout_questions_are_the_built_in_checkpoints(folder: Path) -> None:
    assert "<tools/nano/heldout.jsonl>" in make(folder, "engine")
    assert "<tools/nano/heldout.jsonl>" not in make(folder, "engine", "CHECKPOINT=x tools/nano/checkpoint")
    assert "<--include>" not in make(folder, "plugins")
    assert "<--image>" not in make(folder, "engine")
