"""deltart bench: how fast an artifact or a server is here, and whether it became slower than a baseline."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli import bench_server
from deltart.cli.bounds import positive, real, whole
from deltart.cli.screen import console, line, table
from deltart.cli.steps import Steps
from deltart.cli.streams import print_json
from deltart.errors import BenchError
from deltart.files import write_atomically

if TYPE_CHECKING:
    from deltart.latency.cases import Case
    from deltart.latency.compare import Say
    from deltart.latency.report import Report, Spread
    from deltart.latency.setting import Setting, Subject
    from deltart.latency.verdict import Verdict

BASELINES = Path(".bench/baselines")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", help="time an artifact, and compare it with a baseline", description=__doc__
    )
    parser.add_argument("artifact", metavar="DIR|URL", help="folder written by `deltart export`, or an OpenAI endpoint")
    group = parser.add_argument_group("what runs")
    group.add_argument("--target", choices=["auto", "tensorrt", "ort", "portable"], default="auto")
    group.add_argument("--weights", choices=["folded", "mapped"], default="folded", help="see deltart generate")
    group.add_argument("--threads", type=whole(0, 1024), default=0, help="CPU threads; 0 lets ONNX Runtime choose")
    group.add_argument(
        "--max-model-len", type=positive, default=8192, metavar="N",
        help="longest prompt and reply to time, in tokens (default 8192, or the artifact's context)",
    )  # fmt: skip
    group.add_argument("--rounds", type=whole(2, 1000), default=5, metavar="N", help="of every case (default 5)")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="what to draft after, as deltart verify takes them")
    against = parser.add_argument_group("baselines (exit code 1 when a metric is slower)")
    against.add_argument("--save", metavar="NAME", help="store what a comparison needs under this name")
    against.add_argument(
        "--against", metavar="NAME|DIR", help="compare with a baseline, or in turns with another artifact"
    )
    against.add_argument(
        "--against-python", metavar="PYTHON", help="compare in turns with the deltart that this Python has"
    )
    against.add_argument("--baselines", type=Path, default=BASELINES, metavar="DIR", help=f"default {BASELINES}")
    against.add_argument(
        "--effect", type=real(0.001, 10), default=0.05, metavar="SHARE",
        help="least change that counts in turns, twice that against stored numbers (default 0.05)",
    )  # fmt: skip
    bench_server.add_options(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run, extra="cpu")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. Returns 1 when a metric is slower than the baseline."""
    if bench_server.is_address(arguments.artifact):
        with Steps("starting") as steps:
            return bench_server.run(arguments, lambda text: steps.now(f"measuring {text}"))
    return _bench(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from deltart.artifact import load_manifest
    from deltart.latency import setting as settings
    from deltart.latency.cases import all_cases, regression_cases

    artifact = Path(arguments.artifact)
    limit = min(arguments.max_model_len, load_manifest(artifact).max_context)
    compared = bool(arguments.against or arguments.against_python)
    few = regression_cases(limit)
    options = (arguments.threads, arguments.target, arguments.weights, limit)
    with Steps("starting") as steps:
        say = lambda text: steps.now(f"measuring {text}")  # noqa: E731
        subject = settings.identify(artifact)
        setting = settings.current(*options, few)
        if compared:
            return _compare(arguments, subject, setting, few, say)
        if arguments.save:
            return _save(arguments, subject, setting, few, say)
        cases = all_cases(limit)
        report = _report(arguments, subject, settings.current(*options, cases), cases, say)
    _show(arguments, report)
    return 0


def _report(arguments: argparse.Namespace, subject: Subject, setting: Setting, cases: list[Case], say: Say) -> Report:
    from deltart.latency.report import measure

    prompts: list[list[int]] = []
    if arguments.prompts:
        from deltart.verify.runners import read_prompts

        prompts = read_prompts(arguments.prompts, Path(arguments.artifact), 24)
    return measure(subject, setting, cases, say, prompts, arguments.rounds)


def _save(arguments: argparse.Namespace, subject: Subject, setting: Setting, cases: list[Case], say: Say) -> int:
    from deltart.latency import baselines, compare

    samples = compare.alone(subject, setting, cases, say)
    path = baselines.save(arguments.baselines, arguments.save, setting, subject, samples)
    if arguments.json:
        print_json({"baseline": str(path), "metrics": list(samples)})
    else:
        console().print(line(f"{path}: {', '.join(samples)}"))
    return 0


def _compare(arguments: argparse.Namespace, subject: Subject, setting: Setting, cases: list[Case], say: Say) -> int:
    from deltart.latency import baselines, compare
    from deltart.latency import setting as settings

    other = Path(arguments.against) if arguments.against else Path(subject.artifact)
    if arguments.against_python or (other / "manifest.json").is_file():
        base = settings.identify(other, arguments.against_python)
        verdicts, _ = compare.in_turns(base, subject, setting, cases, say, arguments.effect)
        how = f"in turns with {other.name} of deltart {base.versions['deltart']}"
    else:
        stored = baselines.load(arguments.baselines, arguments.against)
        baselines.check_comparable(stored, setting)
        if compare.still_here(stored):
            verdicts, _ = compare.in_turns(stored.subject, subject, setting, cases, say, arguments.effect)
            how = f"in turns with what '{stored.name}' was taken of"
        else:
            verdicts, _ = compare.against_stored(stored, subject, setting, cases, say, 2 * arguments.effect)
            how = f"against the numbers of '{stored.name}' ({stored.taken}), which nothing was in turns with"
    baselines.remember(arguments.baselines, arguments.against or "", setting, subject, verdicts)
    _show_verdicts(arguments, verdicts, how)
    if arguments.html:
        from deltart.latency.page import history_page

        past = list(baselines.history(arguments.baselines, setting.device, setting.threads))
        _write(arguments.html, history_page(past, setting))
    return int(any(v.outcome == "slower" for v in verdicts))


def _show_verdicts(arguments: argparse.Namespace, verdicts: list[Verdict], how: str) -> None:
    if arguments.json:
        print_json({"how": how, "verdicts": [asdict(v) | {"outcome": v.outcome} for v in verdicts]})
        return
    rows = []
    for v in verdicts:
        cells = [
            f"{c.ratio:.3f} ({c.low:.3f} to {c.high:.3f}), beyond {1 + c.threshold:.3f}" for c in v.changes.values()
        ]
        rows.append((v.metric, f"{v.base_seconds * 1e3:.3f}", f"{v.new_seconds * 1e3:.3f}", *cells, v.outcome))
    names = list(verdicts[0].changes)
    out = console()
    out.print(table(("metric", "base ms", "new ms", *(f"ratio of {n}s" for n in names), "verdict"), rows, how))


def _show(arguments: argparse.Namespace, report: Report) -> None:
    if arguments.html:
        from deltart.latency.page import page

        _write(arguments.html, page(report))
    if arguments.json:
        print(json.dumps(asdict(report)))
        return
    out = console()
    rows = [
        (name, *_cells(spread), f"{report.rates[name]:.0f}" if name in report.rates else "",
         f"{report.noise[name]:.1%}")
        for name, spread in report.seconds.items()
    ]  # fmt: skip
    head = ("ms", "median", "quartiles", "least", "p90", "p99", "samples", "tok/s", "A/A noise")
    out.print(table(head, rows, f"{report.subject.artifact} on {report.setting.device}"))
    for text in summary(report):
        out.print(line(text))


def summary(report: Report) -> list[str]:
    """What is no table, in lines."""
    from statistics import median

    lines = [f"load, {kind}: {median(taken):.2f} s" for kind, taken in report.loads.items() if taken]
    lines.append(f"peak memory: {report.peak_bytes / 1e6:.0f} MB")
    t = report.traffic
    if t:
        lines.append(
            f"a token moves {t['bytes_per_token'] / 1e6:.1f} MB, at {t['share_of_copy']:.0%} of the measured copy "
            f"bandwidth ({t['copy_bytes_per_s'] / 1e9:.1f} GB/s)"
        )
    for k, found in report.drafts.items():
        rates = ", ".join(f"{a:.2f}" for a in found["acceptance"])
        rate = f"{found['tokens_per_s']:.0f} tok/s, x{found['gain']:.2f}"
        lines.append(f"drafts {k}: {rate}; right by position: {rates or '-'}")
    if report.profile:
        total = sum(report.profile.seconds.values()) or 1.0
        shares = ", ".join(f"{kind} {seconds / total:.0%}" for kind, seconds in report.profile.seconds.items())
        lines.append(f"a token runs {report.profile.nodes:.0f} nodes: {shares}")
    return lines + [f"not measured: {what}: {why}" for what, why in report.skipped.items()]


def _cells(spread: Spread) -> tuple[str, ...]:
    def ms(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds * 1e3:.2f}"

    quartiles = f"{ms(spread.low)} to {ms(spread.high)}"
    return ms(spread.median), quartiles, ms(spread.least), ms(spread.p90), ms(spread.p99), str(spread.samples)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise BenchError(f"{path} can't be written ({error.strerror})", "a writable place", "--html FILE") from error
