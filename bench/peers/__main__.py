"""DeltaRT beside other engines on one checkpoint: the same prompts and token counts, peers in turns, medians of rounds.

    python -m bench.peers [--size tiny|half] [--prompt 1024] [--new 128] [--rows 8] [--long] [--rounds 3]
                          [--only PEER ...] [--json FILE]

An engine that is not installed, or needs a device that is not there, is skipped with the reason. Each measurement runs
in a process of its own; every round exports anew where the engine needs an export.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.peers.adapters import LONGEST_REPLY, PEERS
from bench.peers.checkpoint import CONTEXT, SIZES, write

REFERENCE = "transformers"
WARM_UP = 16  # tokens of the reply that is not timed
BESIDE = 128  # tokens of each prompt where several replies are decoded side by side
LONG = 32768  # tokens of the long prompt


@dataclass(frozen=True)
class Load:
    """What an engine is asked: prompts of so many tokens, side by side, and replies of so many."""

    name: str
    rows: int
    prompt: int
    new: int

    @property
    def context(self) -> int:
        """Tokens that the engine is opened for, a row."""
        return max(self.prompt + LONGEST_REPLY, CONTEXT if self.rows == 1 else 0)

    def metrics(self, first_seconds: float, decode_rate: float) -> dict[str, float]:
        """Tokens a second, by the metric's name."""
        if self.name == "beside":
            return {"beside_decode_rate": decode_rate}
        rate = self.prompt / first_seconds
        return (
            {"long_prefill_rate": rate} if self.name == "long" else {"prefill_rate": rate, "decode_rate": decode_rate}
        )


def main() -> None:
    """Export and measure once per round; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8, help=f"replies side by side, to prompts of {BESIDE}; 1 for none")
    parser.add_argument("--long", action="store_true", help=f"a prompt of {LONG} tokens besides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="PEER")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("PEER", "FOLDER", "LOAD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    loads = loads_of(arguments)
    if arguments.measure:
        peer, folder, name = arguments.measure
        print(json.dumps(measure(peer, Path(folder), arguments.size, next(x for x in loads if x.name == name))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(Path(scratch), arguments, loads)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def loads_of(arguments: argparse.Namespace) -> list[Load]:
    """What is measured of every engine."""
    loads = [Load("alone", 1, arguments.prompt, arguments.new)]
    if arguments.rows > 1:
        loads.append(Load("beside", arguments.rows, BESIDE, arguments.new))
    if arguments.long:
        loads.append(Load("long", 1, LONG, 2))
    return loads


def measure(peer: str, folder: Path, size: str, load: Load) -> dict[str, Any]:
    """Rates of a warmed-up engine, and the tokens of its replies."""
    drawn = np.random.default_rng(0).integers(0, SIZES[size]["vocab"] - 1, (load.rows, load.prompt))
    prompts = drawn.tolist()
    answer = PEERS[peer].open(folder, load.rows, load.context)
    if load.name == "long":
        answer([ids[:CONTEXT] for ids in prompts], load.new)
    else:
        answer(prompts, load.new if load.rows > 1 else WARM_UP)
    replies = answer(prompts, load.new)
    found: dict[str, Any] = load.metrics(replies.first_seconds, replies.decoded / replies.decode_seconds)
    return {**found, "tokens": replies.tokens}


def compare(scratch: Path, arguments: argparse.Namespace, loads: Sequence[Load]) -> dict[str, Any]:
    """Medians of each peer, and how many of its replies are the reference's."""
    checkpoint = scratch / "checkpoint"
    write(checkpoint, arguments.size, max(load.context for load in loads))
    skipped = {name: reason for name, peer in PEERS.items() if (reason := _left_out(name, arguments))}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in PEERS if name not in skipped}
    replies: dict[str, list[list[int]]] = {}
    for number in range(arguments.rounds):
        for name in samples:
            began = time.perf_counter()
            output = scratch / f"{name}{number}"
            folder = PEERS[name].export(checkpoint, output)
            found = {"export_seconds": time.perf_counter() - began if folder == output else 0.0}
            replies[name] = []
            for load in loads:
                measured = _in_process(name, folder, arguments, load)
                replies[name] += measured.pop("tokens")
                found |= measured
            for metric, value in found.items():
                samples[name].setdefault(metric, []).append(value)
            print(f"round {number + 1} {name}: {found}", file=sys.stderr)
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "size": {"name": arguments.size, **SIZES[arguments.size]},
        "prompt": arguments.prompt,
        "new": arguments.new,
        "rows": arguments.rows,
        "beside_prompt": BESIDE,
        "long_prompt": LONG if arguments.long else None,
        "medians": {name: {m: median(v) for m, v in found.items()} for name, found in samples.items()},
        "equal_replies": {name: equal_replies(found, replies.get(REFERENCE, [])) for name, found in replies.items()},
        "forms": {name: PEERS[name].form for name in samples},
        "skipped": skipped,
        "samples": samples,
        "versions": {name: version(PEERS[name].package) for name in samples},
    }


def equal_replies(found: Sequence[list[int]], reference: Sequence[list[int]]) -> tuple[int, int]:
    """(replies that are the reference's token for token, replies that it gave too)."""
    pairs = list(zip(found, reference, strict=False))
    return sum(one == other for one, other in pairs), len(pairs)


def show(results: dict[str, Any]) -> None:
    """Print the table in Markdown, and what was left out of it."""
    columns = {"prefill_rate": f"prefill {results['prompt']}", "decode_rate": f"decode {results['new']}"}
    if results["rows"] > 1:
        columns["beside_decode_rate"] = f"decode of {results['rows']}"
    if results["long_prompt"]:
        columns["long_prefill_rate"] = f"prefill {results['long_prompt']}"
    heads = ["", "form", "export", *columns.values(), f"replies equal to {REFERENCE}'"]
    print(_row(heads), _row(["---"] * len(heads)), sep="\n")
    for name, row in results["medians"].items():
        export = f"{row['export_seconds']:.1f} s" if row["export_seconds"] else "-"
        equal, compared = results["equal_replies"][name]
        same = f"{equal} of {compared}" if compared and name != REFERENCE else "-"
        rates = [f"{row[metric]:.0f} tok/s" for metric in columns]
        print(_row([f"{name} {results['versions'][name]}", results["forms"][name], export, *rates, same]))
    print(f"\nload {results['load']:.1f} on {results['cores']} cores")
    for name, reason in results["skipped"].items():
        print(f"{name}: skipped, {reason}")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _left_out(name: str, arguments: argparse.Namespace) -> str:
    return PEERS[name].why_not() if name in arguments.only else "not asked for"


def _in_process(name: str, folder: Path, arguments: argparse.Namespace, load: Load) -> dict[str, Any]:
    sizes = ["--size", arguments.size, "--prompt", arguments.prompt, "--new", arguments.new, "--rows", arguments.rows]
    command = [sys.executable, "-m", "bench.peers", *map(str, sizes), *(["--long"] if arguments.long else [])]
    result = subprocess.run([*command, "--measure", name, str(folder), load.name], stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{name} failed with exit code {result.returncode} ({load.name})")
    measured: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
