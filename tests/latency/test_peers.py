"""The side-by-side comparison: our own adapter against transformers' on a tiny checkpoint, and reasons for the rest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from bench.peers import adapters
from bench.peers.adapters import PEERS, stepped, whole
from bench.peers.checkpoint import write
from deltart.export.pipeline import export_checkpoint


@pytest.mark.slow
def test_equal_prompts_give_equal_tokens(tmp_path: Path) -> None:
    """Both engines, through the adapters, over one checkpoint."""
    write(tmp_path / "checkpoint", "tiny")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact", mtp=False)
    ids = list(range(5, 45))
    ours = PEERS["deltart"].open(tmp_path / "artifact")(ids, 12)
    theirs = PEERS["transformers"].open(tmp_path / "checkpoint")(ids, 12)
    assert ours.tokens == theirs.tokens and len(ours.tokens) == 12
    assert 0 < ours.first_seconds < ours.seconds


def test_what_can_not_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(adapters.GGUF, raising=False)
    for name, peer in PEERS.items():
        try:
            version(peer.package)
        except PackageNotFoundError:
            assert peer.why_not() == f"{peer.package} is not installed", name
    assert adapters.GGUF in PEERS["llama.cpp"].missing()
    assert PEERS["transformers"].why_not() == ""


def test_replies_are_counted_alike() -> None:
    """A token at a time and whole: the same tokens, and a first one that takes no longer than all."""
    by_step = stepped(lambda ids: ids[-1] + 1, lambda token: token + 1)([1, 2, 3], 4)
    at_once = whole(lambda ids, count: [ids[-1] + 1 + i for i in range(count)])([1, 2, 3], 4)
    assert by_step.tokens == at_once.tokens == [4, 5, 6, 7]
    assert by_step.first_seconds <= by_step.seconds
