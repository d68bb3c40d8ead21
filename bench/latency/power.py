"""How often the regression suite is right: an unchanged engine, decode slowed by 15 %, prefill slowed by 30 %.

    python -m bench.latency.power [--runs 20] [--artifact DIR] [--json FILE]

Each run takes the suite's samples with five arms in turns: the baseline twice, and the three above, of which each is
judged by itself. A run is flagged when any metric is found slower. The slow ones wait, behind every run of the real
session, for a share of its own time (`slow_worker`), so what users see slows by less than that share.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.runtime import NANO
from deltart.export.pipeline import export_checkpoint
from deltart.latency.cases import regression_cases
from deltart.latency.child import Child
from deltart.latency.turns import Open, Samples, launch
from deltart.latency.verdict import AGAIN, BASE, LAUNCHES, NEW, judge, settled

SLOW_WORKER = Path(__file__).with_name("slow_worker.py")
CHANGES = {"unchanged": "", "decode +15 %": "decode:0.15", "prefill +30 %": "prefill:0.3"}
CONTEXT, ROUNDS = 1024, 4


def opener(artifact: Path, slower: str = "") -> Open:
    """Starts a worker, a slow one where `slower` says phase and share."""

    def start() -> Child:
        child = Child(worker=SLOW_WORKER, environment={"SLOWER": slower}) if slower else Child()
        child.tell("open", artifact=str(artifact), threads=1, slots=4, max_model_len=CONTEXT, draft_tokens=0)
        return child

    return start


def one_run(artifact: Path, seed: int) -> dict[str, Any]:
    """The verdicts on each change, and what the run took."""
    began, rng, samples = time.perf_counter(), random.Random(seed), Samples()
    arms = {name: opener(artifact) for name in (BASE, AGAIN)} | {n: opener(artifact, s) for n, s in CHANGES.items()}
    launches = 0
    while launches < LAUNCHES[0] or (launches < LAUNCHES[1] and not settled(samples)):
        launch(arms, regression_cases(CONTEXT), ROUNDS, rng, samples)
        launches += 1
    found: dict[str, Any] = {"launches": launches, "seconds": round(time.perf_counter() - began)}
    found["load"] = round(os.getloadavg()[0], 1)
    for change in CHANGES:
        verdicts = [judge(m, {BASE: a[BASE], AGAIN: a[AGAIN], NEW: a[change]}) for m, a in samples.items()]
        found[change] = {
            v.metric: [v.outcome, *(round(x, 3) for c in v.changes.values() for x in (c.ratio, 1 + c.threshold))]
            for v in verdicts
        }
    return found


def flagged(run: dict[str, Any], change: str) -> bool:
    """Whether the suite calls it slower."""
    return any(verdict[0] == "slower" for verdict in run[change].values())


def main() -> None:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        artifact = arguments.artifact or Path(folder) / "nano"
        if not arguments.artifact:
            export_checkpoint(NANO, artifact)
        for seed in range(arguments.runs):
            runs.append(one_run(artifact, seed))
            counts = Counter(change for run in runs for change in CHANGES if flagged(run, change))
            print(json.dumps(runs[-1]), flush=True)
            print(f"{len(runs)} runs, flagged: {dict(counts)}", flush=True)
            if arguments.json:
                result = {"cores": os.cpu_count(), "flagged": dict(counts), "runs": runs}
                arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
