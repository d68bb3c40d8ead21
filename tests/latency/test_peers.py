"""The side-by-side comparison: our own adapter against transformers' on a tiny checkpoint, and reasons for the rest."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from bench.peers import adapters
from bench.peers.__main__ import BESIDE, LONG, equal_replies, loads_of
from bench.peers.adapters import PEERS, stepped, whole
from bench.peers.checkpoint import CONTEXT, write
from deltart.export.pipeline import export_checkpoint


@pytest.mark.slow
def test_equal_prompts_give_equal_tokens(tmp_path: Path) -> None:
    """Both engines, through the adapters, over one checkpoint: a prompt alone, and three side by side."""
    write(tmp_path / "checkpoint", "tiny")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact", mtp=False, vision=False)
    for rows in (1, 3):
        prompts = [list(range(5 + row, 45 + row)) for row in range(rows)]
        ours = PEERS["deltart"].open(tmp_path / "artifact", rows, CONTEXT)(prompts, 12)
        theirs = PEERS["transformers"].open(tmp_path / "checkpoint", rows, CONTEXT)(prompts, 12)
        assert ours.tokens == theirs.tokens and [len(row) for row in ours.tokens] == [12] * rows
        assert ours.first_seconds > 0 and ours.decode_seconds > 0
        assert theirs.decoded == 11 * rows and 0 < ours.decoded <= 11 * rows
        assert equal_replies(ours.tokens, theirs.tokens) == (rows, rows)


@pytest.mark.slow
def test_a_context_leaves_the_weights_alone(tmp_path: Path) -> None:
    """The checkpoint for long prompts is the one that the other figures are of."""
    write(tmp_path / "short", "tiny")
    write(tmp_path / "long", "tiny", 4 * CONTEXT)
    short, long = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("short", "long"))
    assert short == long
    text = json.loads((tmp_path / "long" / "config.json").read_text())["text_config"]
    assert text["max_position_embeddings"] == 4 * CONTEXT


def test_what_is_measured_follows_from_the_flags() -> None:
    given = argparse.Namespace(prompt=1024, new=128, rows=8, long=True)
    alone, beside, long = loads_of(given)
    assert (alone.rows, alone.prompt, alone.context) == (1, 1024, CONTEXT)
    assert (beside.rows, beside.prompt) == (8, BESIDE) and beside.context >= BESIDE + 128
    assert (long.rows, long.prompt) == (1, LONG) and long.context > LONG
    names = [name for load in (alone, beside, long) for name in load.metrics(2.0, 5.0)]
    assert names == ["prefill_rate", "decode_rate", "beside_decode_rate", "long_prefill_rate"]
    assert alone.metrics(2.0, 5.0) == {"prefill_rate": 512.0, "decode_rate": 5.0}
    assert [load.name for load in loads_of(argparse.Namespace(prompt=1, new=2, rows=1, long=False))] == ["alone"]


def test_replies_are_compared_one_by_one() -> None:
    assert equal_replies([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == (1, 2)
    assert equal_replies([[1, 2]], []) == (0, 0)


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
    """A token at a time and whole: the same tokens of both rows, and as many of them decoded."""
    prompts = [[1, 2, 3], [7, 8, 9]]
    by_step = stepped(lambda given: [ids[-1] + 1 for ids in given], lambda tokens: [t + 1 for t in tokens])(prompts, 4)
    at_once = whole(lambda given, count: [[ids[-1] + 1 + i for i in range(count)] for ids in given])(prompts, 4)
    assert by_step.tokens == at_once.tokens == [[4, 5, 6, 7], [10, 11, 12, 13]]
    assert by_step.decoded == at_once.decoded == 6
    assert by_step.first_seconds >= 0 and by_step.decode_seconds >= 0
