"""`python -m bench.kernels`: builds, checks and times every kernel on this machine's GPU. See README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.kernels import table
from bench.kernels.device import Cuda, Device, Host
from bench.kernels.run import Run
from bench.kernels.sections import SECTIONS
from bench.kernels.sections.ceilings import BF16_CEILING, FP8_CEILING
from deltart.errors import DeltaRTError
from deltart.plugins import cache, toolchain


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


def main(arguments: list[str]) -> int:
    """0; 1 if a check failed or a section had to be left for the next run; 2 if something is missing."""
    options = parse(arguments)
    if options.sanitize:
        return sanitize(options.sanitize)
    started, left = time.monotonic(), []
    try:
        device = Host() if options.dry_run else Cuda()
        run = Run(device, options.seed, small=options.dry_run or options.check_only, timed=not options.check_only)
        print(f"{device.name}, seed {options.seed}")
        options.out.mkdir(parents=True, exist_ok=True)
        for section in options.section:
            path = options.out / f"{section}.json"
            summed = section == "token"  # from what this call has, never from an earlier one
            found = None if options.check_only or summed else table.load(path, key(device, options))
            if found is None and time.monotonic() - started > 60 * options.minutes:
                left.append(section)
                continue
            if found is None:
                print(f"{section} ...", flush=True)
                found = list(SECTIONS[section](run))
                table.save(path, key(device, options), found)
            hand_on(run, found)
    except DeltaRTError as error:
        print(error, file=sys.stderr)
        return 2
    print(table.show(run.rows))
    if left:
        print(f"left for the next run: {' '.join(left)}")
    return int(bool(left) or not all(row.passed for row in run.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
