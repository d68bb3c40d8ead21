"""DeltaRT beside other engines on one checkpoint: the same prompts and token counts, peers in turns, medians of rounds.

    python -m bench.peers [--size tiny|half] [--prompt 1024] [--new 128] [--rounds 3] [--json FILE]

An engine that is not installed, or needs a device that is not there, is skipped with the reason. Each one runs in a
process of its own; every round exports anew where the engine needs an export.
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
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.peers.adapters import PEERS
from bench.peers.checkpoint import SIZES, write

REFERENCE = "transformers"
WARM_UP = 16  # tokens of the reply that is not timed


def main() -> None:
    """Export and measure once per round; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        peer, folder = arguments.measure
        print(json.dumps(measure(peer, Path(folder), arguments.size, arguments.prompt, arguments.new)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = compare(Path(scratch), arguments)
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(peer: str, folder: Path, size: str, prompt: int, new: int) -> dict[str, Any]:
    """Rates of a warmed-up engine, and the tokens that it replies with."""
    ids = np.random.default_rng(0).integers(0, SIZES[size]["vocab"] - 1, prompt).tolist()
    answer = PEERS[peer].open(folder)
    answer(ids, WARM_UP)
    reply = answer(ids, new)
    decode = (len(reply.tokens) - 1) / (reply.seconds - reply.first_seconds)
    return {"prefill_rate": prompt / reply.first_seconds, "decode_rate": decode, "tokens": reply.tokens}


def compare(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of each peer, and whether its tokens are those of the reference."""
    checkpoint = scratch / "checkpoint"
    write(checkpoint, arguments.size)
    skipped = {name: reason for name, peer in PEERS.items() if (reason := peer.why_not())}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in PEERS if name not in skipped}
    tokens: dict[str, list[int]] = {}
    for number in range(arguments.rounds):
        for name in samples:
            began = time.perf_counter()
            folder = PEERS[name].export(checkpoint, scratch / f"{name}{number}")
            exported = time.perf_counter() - began if folder != checkpoint else 0.0
            found = _in_process(name, folder, arguments)
            tokens[name] = found.pop("tokens")
            for metric, value in {"export_seconds": exported, **found}.items():
                samples[name].setdefault(metric, []).append(value)
            print(f"round {number + 1} {name}: {found}", file=sys.stderr)
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "size": {"name": arguments.size, **SIZES[arguments.size]},
        "prompt": arguments.prompt,
        "new": arguments.new,
        "medians": {name: {m: median(v) for m, v in found.items()} for name, found in samples.items()},
        "same_tokens": {name: found == tokens[REFERENCE] for name, found in tokens.items() if REFERENCE in tokens},
        "forms": {name: PEERS[name].form for name in samples},
        "skipped": skipped,
        "samples": samples,
        "versions": {name: version(PEERS[name].package) for name in samples},
    }


def show(results: dict[str, Any]) -> None:
    """Print the table in Markdown, and what was left out of it."""
    prompt, new = results["prompt"], results["new"]
    print(f"| | form | export | prefill {prompt} | decode {new} | tokens equal to {REFERENCE}' |")
    print("|---|---|---|---|---|---|")
    for name, row in results["medians"].items():
        export = f"{row['export_seconds']:.1f} s" if row["export_seconds"] else "-"
        same = "-" if name == REFERENCE else "yes" if results["same_tokens"].get(name) else "no"
        label = f"{name} {results['versions'][name]}"
        rates = f"{row['prefill_rate']:.0f} tok/s | {row['decode_rate']:.0f} tok/s"
        print(f"| {label} | {results['forms'][name]} | {export} | {rates} | {same} |")
    print(f"\nload {results['load']:.1f} on {results['cores']} cores")
    for name, reason in results["skipped"].items():
        print(f"{name}: skipped, {reason}")


def _in_process(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = ["--size", arguments.size, "--prompt", str(arguments.prompt), "--new", str(arguments.new)]
    command = [sys.executable, "-m", "bench.peers", *sizes, "--measure", name, str(folder)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"{name} failed with exit code {result.returncode}")
    measured: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
