"""`python3 -m bench.first_run`: the first hour on a GPU, no network, no TensorRT. See README.md."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.first_run.steps import Step, steps

ROOT = Path(__file__).resolve().parents[2]
TAIL = 12  # lines of a step's output in the summary
KILLED = 124  # the exit code of what ran out of time, as timeout(1) has it


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.first_run", description=__doc__)
    parser.add_argument("--prepare", action="store_true", help="make what the GPU machine needs, on one without a GPU")
    parser.add_argument("--prepared", type=Path, default=Path(".bench/first_run"), metavar="DIR")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="summary.txt and logs.tar.gz (default: $OUT, or .bench)"
    )
    parser.add_argument(
        "--part", type=int, nargs="+", choices=(1, 2, 3), default=(1, 2, 3), help="of about 9 minutes each"
    )
    parser.add_argument("--step", nargs="+", help="these steps alone")
    options = parser.parse_args(arguments)
    if options.out is None:
        options.out = Path(os.environ.get("OUT") or ".bench/first_run_results")
    return options


def run(step: Step, log: Path) -> tuple[int, float]:
    """The step's exit code and seconds; its output goes to `log` as it comes. What runs out of time is ended whole."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            return 127, 0.0
        try:
            code = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = KILLED
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return code, time.monotonic() - began


def tail(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "".join(f"    {line[:200]}\n" for line in lines[-TAIL:])


def pack(work: Path, out: Path) -> None:
    """Everything so far as one file, whole at every moment."""
    partial = out / "logs.partial"
    with tarfile.open(partial, "w:gz") as archive:
        archive.add(work, "first_run")
    partial.replace(out / "logs.tar.gz")


def main(arguments: Sequence[str]) -> int:
    """0 where every step ended well, else 1; nothing stops at a failure."""
    options = parse(arguments)
    if options.prepare:
        from bench.first_run.prepare import prepare

        prepare(options.prepared)
        return 0
    work = options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    chosen = [
        step
        for step in steps(options.prepared.resolve(), work.resolve())
        if step.part in options.part and (not options.step or step.name in options.step)
    ]
    failed = 0
    with (options.out / "summary.txt").open("a", encoding="utf-8") as summary:
        for step in chosen:
            print(f"{step.name} ...", flush=True)
            code, seconds = run(step, work / f"{step.name}.log")
            failed += code != 0
            ended = f"ran out of its {step.seconds} s" if code == KILLED else f"ended with {code}"
            text = f"{step.name}: {ended} after {seconds:.0f} s\n{tail(work / f'{step.name}.log')}"
            summary.write(text)
            summary.flush()
            print(text, end="", flush=True)
            pack(work, options.out)
    print(f"{len(chosen) - failed} of {len(chosen)} steps ended well; {options.out}/summary.txt")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
