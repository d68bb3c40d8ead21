"""Everything that `deltart bench` says of an artifact on this machine."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deltart.artifact import load_manifest
from deltart.latency.cases import Case, decode
from deltart.latency.profile import Profile, profile
from deltart.latency.setting import Setting, Subject, opener
from deltart.latency.turns import Samples, launch
from deltart.latency.verdict import AGAIN, BASE
from deltart.manifest import Manifest
from deltart.planner.host import copy_bandwidth
from deltart.planner.traffic import Call, read_model

ROUNDS, LOADS = 5, 3
DRAFTS = (0, 1, 2, 3, 4)
DRAFT_PROMPTS, DRAFT_TOKENS, DRAFT_ROUNDS = 6, 64, 3
ENOUGH = {0.9: 50, 0.99: 459}  # samples without which a percentile is not stated (MLPerf's rule for the 99th)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Seconds of a metric: median, quartiles and least; percentiles of single tokens where there are enough."""

    median: float
    low: float
    high: float
    least: float
    p90: float | None
    p99: float | None
    samples: int


@dataclass(frozen=True)
class Report:
    """The figures.

    Attributes:
        noise: largest ratio of medians of two identical engines, less 1, by metric.
        loads: seconds from a new process to an open engine, "cold" (weights not in the page cache) and "warm".
        rates: tokens/s by metric.
        drafts: by number of drafts: tokens/s, gain over none, acceptance by position.
        traffic: bytes of a token, copy bandwidth, and what of it the decode step reaches, for the CPU.
        skipped: what was not measured, and why.
    """

    setting: Setting
    subject: Subject
    seconds: Mapping[str, Spread]
    rates: Mapping[str, float]
    noise: Mapping[str, float]
    loads: Mapping[str, Sequence[float]]
    drafts: Mapping[str, Mapping[str, Any]]
    traffic: Mapping[str, float]
    profile: Profile | None
    peak_bytes: int
    skipped: Mapping[str, str]


def measure(
    subject: Subject, setting: Setting, cases: Sequence[Case], say: Say, prompts: Sequence[Sequence[int]] = (),
    rounds: int = ROUNDS, seed: int = 0,
) -> Report:  # fmt: skip
    """Measure it all.

    Args:
        cases: what is timed, in `rounds` rounds of random order, by two processes in turns: their difference is noise.
        say: told what goes on.
        prompts: token ids to draft after; random ones where there are none.
    """
    artifact, rng = Path(subject.artifact), random.Random(seed)
    manifest, skipped = load_manifest(artifact), dict[str, str]()
    say("loading")
    loads = _loads(artifact, subject, setting, manifest, skipped)
    samples = Samples()
    arms = {BASE: opener(subject, setting), AGAIN: opener(subject, setting)}
    launch(arms, cases, rounds, rng, samples, say)
    drafts, peak = _drafts(subject, setting, manifest, prompts, say, skipped)
    say("profile")
    on_cpu = setting.target in ("auto", "ort") and not (artifact / "engine").is_dir()
    nodes = profile(artifact, setting.threads, setting.weights) if on_cpu else None  # type: ignore[arg-type]
    if nodes is None:
        skipped["time by kind of block"] = "profiled on ONNX Runtime only; bench.engine and bench.kernels time a GPU"
    seconds = {case.name: _spread(case, samples[case.name]) for case in cases}
    say("copy bandwidth")
    return Report(
        setting, subject, seconds, _rates(cases, seconds), _noise(samples), loads, drafts,
        _traffic(manifest, cases, seconds, setting), nodes, peak, skipped,
    )  # fmt: skip


def _loads(
    artifact: Path, subject: Subject, setting: Setting, manifest: Manifest, skipped: dict[str, str]
) -> dict[str, list[float]]:
    """Cold: the artifact's pages are given back first, as far as the system follows; libraries stay cached."""
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(LOADS):
        for kind in found:
            if kind == "cold" and not _drop_pages([artifact / "weights" / file.name for file in manifest.files]):
                skipped["load, cold"] = "the weights' pages can't be given back here"
                continue
            with opener(subject, setting)() as child:
                taken = child.answer()
            found[kind].append(taken["import_seconds"] + taken["open_seconds"])
    return found


def _drop_pages(files: Sequence[Path]) -> bool:
    dropped = False
    for path in files:
        with contextlib.suppress(OSError, AttributeError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            dropped = True
    return dropped


def _drafts(
    subject: Subject, setting: Setting, manifest: Manifest, prompts: Sequence[Sequence[int]], say: Say,
    skipped: dict[str, str],
) -> tuple[dict[str, dict[str, Any]], int]:  # fmt: skip
    """Greedy replies with each number of drafts in turns; and the peak memory of the process without drafts."""
    if "mtp" not in manifest.graphs:
        skipped["drafts"] = "the artifact has no MTP head"
        with opener(subject, setting)() as child:
            child.answer()
            decode(8, 1, 8).sample(child)
            return {}, int(child.ask("memory")["peak_bytes"])
    limit = int(manifest.vocab_size * 0.9)
    if not prompts:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, limit, 32).tolist() for _ in range(DRAFT_PROMPTS)]
        skipped["drafts on real prompts"] = (
            "none given with --prompts: acceptance is that of greedy text after random ids"
        )
    rates: dict[int, list[float]] = {k: [] for k in DRAFTS}
    acceptance: dict[int, list[float]] = {}
    with contextlib.ExitStack() as stack:
        children = {k: stack.enter_context(opener(subject, setting, draft_tokens=k)()) for k in DRAFTS}
        for child in children.values():
            child.answer()
        for number in range(DRAFT_ROUNDS + 1):
            for k, child in children.items():
                say(f"drafts {k}")
                found = child.ask("replies", prompts=[list(ids) for ids in prompts[:DRAFT_PROMPTS]], new=DRAFT_TOKENS)
                if number:
                    rates[k].append(found["tokens"] / found["seconds"])
        for k, child in children.items():
            acceptance[k] = child.ask("acceptance")["acceptance"]
        peak = int(children[0].ask("memory")["peak_bytes"])
    gains = {k: median(f / base for f, base in zip(found, rates[0], strict=True)) for k, found in rates.items()}
    table = {
        str(k): {"tokens_per_s": median(found), "gain": gains[k], "acceptance": acceptance[k]}
        for k, found in rates.items()
    }
    return table, peak


def _spread(case: Case, arms: Mapping[str, Sequence[Sequence[Sequence[float]]]]) -> Spread:
    raw = np.array([value for launches in arms.values() for rounds in launches for r in rounds for value in r])
    low, mid, high = np.quantile(raw, [0.25, 0.5, 0.75])
    tails = [float(np.quantile(raw, q)) if len(raw) >= count else None for q, count in ENOUGH.items()]
    return Spread(float(mid), float(low), float(high), float(raw.min()), tails[0], tails[1], len(raw))


def _rates(cases: Sequence[Case], seconds: Mapping[str, Spread]) -> dict[str, float]:
    return {case.name: case.tokens / seconds[case.name].median for case in cases if "kept" not in case.name}


def _noise(samples: Samples) -> dict[str, float]:
    found = {}
    for name, arms in samples.items():
        medians = [median(median(raw) for rounds in arms[arm] for raw in rounds) for arm in (BASE, AGAIN)]
        found[name] = max(medians) / min(medians) - 1
    return found


def _traffic(
    manifest: Manifest, cases: Sequence[Case], seconds: Mapping[str, Spread], setting: Setting
) -> dict[str, float]:
    """Of the first case of one row; float32 as ONNX Runtime holds it."""
    case = next((c for c in cases if c.do == "decode" and c.tokens == 1), None)
    if case is None:
        return {}
    model = read_model(manifest, float_weights=setting.weights == "folded", cache_bytes=4)
    moved = sum(w.nbytes for w in model.work(Call(past=case.context)).values())
    copied, step = copy_bandwidth(setting.threads), seconds[case.name].median
    return {
        "context": float(case.context), "bytes_per_token": moved, "copy_bytes_per_s": copied,
        "share_of_copy": moved / step / copied, "seconds": step, "seconds_at_copy": moved / copied,
    }  # fmt: skip
