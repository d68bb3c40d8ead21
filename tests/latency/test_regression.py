"""The latency regression suite: pytest -m latency tests/latency

Of the built-in model, or of what these variables name:

    DELTART_BENCH_ARTIFACT  an artifact to time
    DELTART_BENCH_BASE      an artifact that it must not be slower than (the same one by default)
    DELTART_BENCH_PYTHON    a Python whose deltart runs the base, such as the last release's
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.latency.power import CHANGES, CONTEXT, flagged, one_run
from deltart.artifact import load_manifest
from deltart.latency.cases import regression_cases
from deltart.latency.compare import in_turns
from deltart.latency.profile import profile
from deltart.latency.setting import current, identify
from deltart.planner.traffic import Call, read_model

pytestmark = pytest.mark.latency

NODES = 165  # of a token of the built-in model: 150 to 154 with ONNX Runtime 1.31
BYTES = 15e6  # that it moves


@pytest.fixture(scope="module")
def artifact(nano_artifact: Path) -> Path:
    return Path(os.environ.get("DELTART_BENCH_ARTIFACT", nano_artifact))


def test_it_is_no_slower_than_its_base(artifact: Path) -> None:
    base = identify(Path(os.environ.get("DELTART_BENCH_BASE", artifact)), os.environ.get("DELTART_BENCH_PYTHON"))
    limit = min(1024, load_manifest(artifact).max_context)
    cases = regression_cases(limit)
    verdicts, _ = in_turns(base, identify(artifact), current(1, "auto", "folded", limit, cases), cases, print)
    print(*verdicts, sep="\n")
    assert not [v for v in verdicts if v.outcome == "slower"]


def test_a_slowdown_is_found(nano_artifact: Path) -> None:
    """15 % of decode, 30 % of prefill, and no more: one run of what bench.latency.power counts over many."""
    run = one_run(nano_artifact, seed=0)
    assert [change for change in CHANGES if flagged(run, change)] == ["decode +15 %", "prefill +30 %"]
    assert CONTEXT >= 1024


def test_what_needs_no_quiet_machine(nano_artifact: Path) -> None:
    assert profile(nano_artifact, 1, "folded").nodes <= NODES
    work = read_model(load_manifest(nano_artifact), float_weights=True).work(Call(past=128))
    assert sum(w.nbytes for w in work.values()) <= BYTES
