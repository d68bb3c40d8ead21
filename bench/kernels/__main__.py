"""`python -m bench.kernels`: builds, checks and times every kernel on this machine's GPU. See README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench.kernels import table
from bench.kernels.device import Cuda, Device, Host
from bench.kernels.run import Run
from bench.kernels.sections import RIVALRIES, SECTIONS
from bench.kernels.sections.ceilings import BF16_CEILING, FP8_CEILING
from deltart.errors import DeltaRTError
from deltart.plugins import cache, toolchain

STOPPED = "(stopped)"  # the case of a row that says what ended a section
CHILD_SECONDS = 60  # for a child's start and its last section


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    parser.add_argument("--section", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path(".bench/kernels"), help="results are kept here, and resumed")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no section after this long")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the inputs (default: the clock)")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU shim; no GPU needed")
    parser.add_argument("--check-only", action="store_true", help="small sizes, no timing")
    parser.add_argument(
        "--sanitize",
        choices=("memcheck", "racecheck", "initcheck", "synccheck"),
        help="run the checks under compute-sanitizer with this tool, and nothing else",
    )
    parser.add_argument("--no-rivals", action="store_true", help="leave others' kernels out")
    parser.add_argument("--rivals", action="store_true", help="time others' kernels in this process")
    return parser.parse_args(arguments)


def sanitize(tool: str) -> int:
    """The checks under compute-sanitizer; its exit code, 3 where it found something."""
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "3",
        sys.executable,
        "-m",
        "bench.kernels",
        "--check-only",
        "--section",
        *(name for name in SECTIONS if name != "ceilings"),
    ]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else accesses past a buffer stay unseen
    return subprocess.run(command, env=environment, check=False).returncode


def key(device: Device, options: argparse.Namespace) -> dict[str, str]:
    """Results hold for one device, one text of the kernels and the benchmark, and one kind of run."""
    text = "".join(cache.key(source, ()) for source in toolchain.sources())
    bench = "".join(cache.key(path, ()) for path in sorted(Path(__file__).parent.rglob("*.py")))
    return {"device": device.name, "sources": text, "bench": bench, "checked_only": str(options.check_only)}


def hand_on(run: Run, rows: list[table.Row]) -> None:
    """Hands the measured ceilings and rows to the sections that follow."""
    run.rows += rows
    for row in rows:
        if row.section == "ceilings":
            run.copy_gbs = row.gbs or run.copy_gbs
            run.matmul_tflops = row.tflops or 0.0 if row.case == BF16_CEILING else run.matmul_tflops
            run.fp8_tflops = row.tflops or 0.0 if row.case == FP8_CEILING else run.fp8_tflops


def measured(run: Run, section: str) -> list[table.Row]:
    """A section's rows; whatever stops it is a failed row at their end."""
    rows: list[table.Row] = []
    try:
        rows.extend(SECTIONS[section](run))
    except Exception as error:
        traceback.print_exc(limit=-3)
        rows.append(table.Row(section, STOPPED, passed=False, notes=[f"{type(error).__name__}: {error}"]))
    return rows


def child(options: argparse.Namespace, sections: Sequence[str], out: Path, *more: str) -> None:
    """The benchmark in a process of its own, whose end, however it comes, ends nothing here."""
    command = [sys.executable, "-m", "bench.kernels", "--out", str(out), "--minutes", str(options.minutes), *more]
    command += ["--seed", str(options.seed), *(["--check-only"] if options.check_only else [])]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run([*command, "--section", *sections], check=False, timeout=60 * options.minutes + CHILD_SECONDS)


def against_rivals(run: Run, options: argparse.Namespace, found: dict[str, str]) -> None:
    """Times the rivals behind all of ours, a process a section, and adds what they took to our rows."""
    for section in (name for name in RIVALRIES if name in options.section):
        child(options, [section], options.out / "rivals", "--rivals")
        theirs = {row.case: row for row in table.load(options.out / "rivals" / f"{section}.json", found) or []}
        for row in (row for row in run.rows if row.section == section and row.case in theirs):
            row.peers |= theirs[row.case].peers
            row.notes += [note for note in theirs[row.case].notes if note not in row.notes]


def sections(run: Run, options: argparse.Namespace, found: dict[str, str]) -> list[str]:
    """Runs the sections, each kept in a file as soon as it is done; those that there was no time for."""
    started, left = time.monotonic(), []
    for place, section in enumerate(options.section):
        path = options.out / f"{section}.json"
        summed = section == "token"  # from what this call has, never from an earlier one
        rows = None if options.check_only or summed else table.load(path, found)
        if rows is None and time.monotonic() - started > 60 * options.minutes:
            left.append(section)
            continue
        if rows is None:
            print(f"{section} ...", flush=True)
            rows = measured(run, section)
            stopped = rows and rows[-1].case == STOPPED
            table.save(path.with_suffix(".stopped.json") if stopped else path, found, rows)
        hand_on(run, rows)
        rest = options.section[place + 1 :]
        if rest and rows and rows[-1].case == STOPPED and not run.device.usable():
            print("the device answers no more: the other sections run in a new process", flush=True)
            child(options, rest, options.out, "--no-rivals")
            for later in rest:
                hand_on(run, table.load(options.out / f"{later}.json", found) or [])
            break
    return left


def main(arguments: list[str]) -> int:
    """0; 1 if a check failed or a section stopped or had to be left for the next run; 2 if something is missing."""
    options = parse(arguments)
    if options.sanitize:
        return sanitize(options.sanitize)
    try:
        device = Host() if options.dry_run else Cuda()
    except (DeltaRTError, ImportError, RuntimeError, AssertionError) as error:  # torch's own words for "no GPU"
        print(error, file=sys.stderr)
        return 2
    run = Run(device, options.seed, small=options.dry_run or options.check_only, timed=not options.check_only)
    run.rivals = options.rivals
    print(f"{device.name}, seed {options.seed}")
    options.out.mkdir(parents=True, exist_ok=True)
    found, left = key(device, options), []
    try:
        left = sections(run, options, found)
        if run.timed and not (options.dry_run or options.rivals or options.no_rivals):
            against_rivals(run, options, found)
    finally:
        print(table.show(run.rows))
    if left:
        print(f"left for the next run: {' '.join(left)}")
    return int(bool(left) or not all(row.passed for row in run.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
