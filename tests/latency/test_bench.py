"""`deltart bench` from end to end over the built-in model, in a few short samples; and the pieces around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from deltart.cli import main
from deltart.errors import BenchError
from deltart.latency import baselines, compare, report
from deltart.latency.cases import Case, all_cases, decode, first_token, regression_cases
from deltart.latency.child import Child
from deltart.latency.page import history_page, page
from deltart.latency.profile import REST, summed
from deltart.latency.setting import Setting, current, identify, opener
from deltart.latency.verdict import AGAIN, BASE
from deltart.latency.worker import SETTLE, _gaps
from deltart.runtime.metrics import EndEvent, TokenEvent

CASES = [decode(16, 1, 8), decode(16, 2, 4), first_token(24)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch of each arm instead of five."""
    monkeypatch.setattr(compare, "LAUNCHES", (1, 1))
    monkeypatch.setattr(compare, "ROUNDS", 2)


def setting_of(threads: int = 1, context: int = 128) -> Setting:
    return current(threads, "ort", "folded", context, CASES)


def test_a_baseline_and_a_comparison(
    nano_artifact: Path, few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saved, compared in turns with what it was saved of, refused under other threads, and kept in the history."""
    common = ["bench", str(nano_artifact), "--baselines", str(tmp_path), "--target", "ort", "--max-model-len", "256"]
    assert main([*common, "--threads", "1", "--save", "first"]) == 0
    code = main([*common, "--threads", "1", "--against", "first", "--json", "--html", str(tmp_path / "history.html")])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "in turns" in found["how"]
    assert {v["metric"] for v in found["verdicts"]} == {case.name for case in regression_cases(256)}
    assert code == any(v["outcome"] == "slower" for v in found["verdicts"])
    assert main([*common, "--threads", "2", "--against", "first"]) == 2
    assert "threads: 1 then, 2 now" in capsys.readouterr().err
    assert main([*common, "--threads", "1", "--against", "second"]) == 2
    assert "first" in capsys.readouterr().err
    lines = (tmp_path / baselines.HISTORY).read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["against"] == "first"
    assert "<polyline" in (tmp_path / "history.html").read_text()


def test_stored_numbers_are_used_where_the_code_has_changed(nano_artifact: Path, few: None, tmp_path: Path) -> None:
    subject, setting = identify(nano_artifact), setting_of()
    samples = compare.alone(subject, setting, CASES, lambda text: None)
    baselines.save(tmp_path, "old", setting, subject, samples)
    stored = baselines.load(tmp_path, "old")
    assert stored.samples == samples and stored.setting == setting and compare.still_here(stored)
    path = tmp_path / "old.json"
    path.write_text(path.read_text().replace(subject.versions["source"], "0" * 16))
    changed = baselines.load(tmp_path, "old")
    assert not compare.still_here(changed)
    verdicts, _ = compare.against_stored(changed, subject, setting, CASES, lambda text: None)
    assert [v.metric for v in verdicts] == [case.name for case in CASES]
    with pytest.raises(BenchError, match=r"context: 128 then, 64 now"):
        compare.against_stored(changed, subject, setting_of(context=64), CASES, lambda text: None)


def test_the_report(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its figures are there, and fit one another."""
    monkeypatch.setattr(report, "LOADS", 1)
    monkeypatch.setattr(report, "DRAFTS", (0, 2))
    monkeypatch.setattr(report, "DRAFT_ROUNDS", 1)
    monkeypatch.setattr(report, "DRAFT_TOKENS", 12)
    found = report.measure(identify(nano_artifact), setting_of(), CASES, lambda text: None, rounds=2)
    assert found.seconds.keys() == found.noise.keys() == {case.name for case in CASES}
    for case in CASES:
        spread = found.seconds[case.name]
        assert 0 < spread.least <= spread.low <= spread.median <= spread.high
        assert found.rates[case.name] == pytest.approx(case.tokens / spread.median)
    assert found.seconds["gap rows=1 context=16"].p99 is None  # too few
    assert all(taken for taken in found.loads.values())
    assert found.drafts["0"]["acceptance"] == [] and len(found.drafts["2"]["acceptance"]) == 2
    assert found.traffic["bytes_per_token"] == pytest.approx(
        4 * 3.3e6, rel=0.3
    )  # 4.6 M parameters, embedding, MTP apart
    assert found.profile is not None and found.profile.nodes == pytest.approx(150, abs=25)
    shown = page(found)
    assert shown.count("<svg") == 3 and "http" not in shown


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with Child() as child:
        with pytest.raises(BenchError, match="manifest"):
            child.ask("open", artifact=str(tmp_path))
        assert "deltart" in child.ask("versions")
    dying = tmp_path / "dying.py"
    dying.write_text("raise SystemExit('no luck today')")
    with Child(worker=dying) as child, pytest.raises(BenchError, match="no luck today"):
        child.ask("versions")
    with pytest.raises(BenchError, match="can't be started"):
        Child(str(tmp_path / "python"))


def test_a_python_without_deltart(nano_artifact: Path, tmp_path: Path) -> None:
    """One that shares nothing with this environment but the interpreter."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec env -u PYTHONPATH "{sys.base_prefix}/bin/python3" -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(BenchError, match="deltart"):
        identify(nano_artifact, str(bare))


def test_kept_prefixes_are_found_and_fresh_prompts_are_not(nano_artifact: Path) -> None:
    with opener(identify(nano_artifact), setting_of())() as child:
        child.answer()
        first, again, fresh = (child.ask("prompt", tokens=60, seed=1, fresh=f) for f in (False, False, True))
        assert (first["cached"], again["cached"], fresh["cached"]) == (0, 59, 0)
        assert len(child.ask("decode", context=20, rows=3, steps=5)["gaps"]) == 15


def test_gaps_begin_when_all_rows_run() -> None:
    """Tokens of a step that gave several count several times; what the end of a reply adds is no gap."""
    events: list[object] = [TokenEvent(1, True, 9.0), TokenEvent(1, False, 8.0), TokenEvent(1, True, 7.0)]
    events += [TokenEvent(1, False, 6.0)] * (2 * SETTLE)
    events += [TokenEvent(2, False, 0.4), EndEvent(None, "length"), TokenEvent(1, False, 0.3)]  # type: ignore[arg-type]
    assert _gaps(events, 2, 1) == [0.2, 0.2, 0.3]


def test_profiles_add_up_by_layer() -> None:
    def node(name: str, op: str, at: int, duration: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "dur": duration, "args": {"op_name": op}}

    run = [
        node("_inlfunc_GatedDeltaNetLayer_node_linear", "MatMul", 0, 30),
        node("LinearAttention_0", "LinearAttention", 30, 8),
        node("If_211", "If", 30, 20),
        node("_inlfunc_GatedAttentionLayer_token_1_linear", "MatMul", 50, 12),
        node("Concat_3", "Concat", 62, 5),
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 70},
    ]
    found = summed(run)
    assert found.nodes == 4
    expected = {"DeltaNet layers": 30e-6, "DeltaNet kernels": 8e-6, "attention layers": 12e-6, REST: 5e-6}
    assert {kind: seconds for kind, seconds in found.seconds.items() if seconds} == pytest.approx(expected)


def test_cases_fit_the_context() -> None:
    for limit in (200, 2048, 40_000):
        assert all(isinstance(c, Case) and c.context + 96 <= limit for c in all_cases(limit))
    assert len({c.name for c in all_cases(40_000)}) == len(all_cases(40_000)) == 13
    assert regression_cases(64)


def test_names_of_baselines(tmp_path: Path) -> None:
    for name in ("../there", "", ".hidden", "a/b"):
        with pytest.raises(BenchError, match="no name"):
            baselines.load(tmp_path, name)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BenchError, match=r"bad\.json"):
        baselines.load(tmp_path, "bad")
    (tmp_path / baselines.HISTORY).write_text('{"half\n[1]\n')
    assert list(baselines.history(tmp_path, "x", 1)) == []
    assert "Nothing was measured" in history_page([], setting_of())


def test_arms_are_the_same_subject(nano_artifact: Path, few: None) -> None:
    samples = compare.alone(identify(nano_artifact), setting_of(), CASES[:1], lambda text: None)
    assert samples[CASES[0].name].keys() == {BASE, AGAIN}
