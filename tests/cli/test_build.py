"""`deltart build` as a person sees it: lines in a log, a bar on a terminal, JSON for tools."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from deltart.cli import main
from deltart.cli.steps import Steps
from support.cases import Export


def shown(terminal: bool) -> str:
    """What a build of one plan prints, without its escape sequences."""
    out = io.StringIO()
    with Steps("reading the artifact", Console(file=out, force_terminal=terminal, width=80)) as steps:
        steps.line("model.decode: building for sm_89")
        for share in (0.0, 0.5, 1.0):
            steps.progress(share)
            steps._bar.refresh()
        steps.line("model.decode: 1.0 MB")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


def test_a_log_has_lines_and_no_bar() -> None:
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 2 and all(re.match(r" +\d+\.\d s  model\.decode: ", line) for line in lines)


def test_a_terminal_has_a_bar_with_its_time() -> None:
    assert re.search(r"model\.decode +━+.*0:00:0\d", shown(terminal=True))


def test_build_lowers_builds_and_tells(exported: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    artifact = shutil.copytree(exported("heads-1-3").artifact, tmp_path / "artifact")
    command = ["build", str(artifact), "--gpu", "sm_89", "--max-context", "64", "--cache", str(tmp_path / "cache")]
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["flavour"] == "rtx" and len(found["plans"]) == 6
    assert "tracing each kind of block" in captured.err and captured.err.count("building for sm_89") == 6
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.err.count("up to date") == 6 and "rtx for sm_89" in captured.out
