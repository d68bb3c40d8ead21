"""An engine under random load for a while: memory stays flat, nothing is leaked, and it closes at once.

    python -m bench.soak [--minutes 30] [--artifact DIR] [--json FILE]

Requests come and go at random: cancelled, with deadlines, refused, several replies, grammars, chats that go on. Exit
code 1 where memory grows by more than 2 % after the warm-up, something is left over, or closing takes over 2 s.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.runtime import NANO, questions
from deltart.errors import DeltaRTError
from deltart.export.pipeline import export_checkpoint
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request
from deltart.runtime.structure.structure import Structure

CLIENTS = 12
WARM_UP = 0.25  # share of the time, in which the prefix cache fills
DRIFT = 0.02


class Load:
    """Clients that ask at random until told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prompts = questions(engine, 60)
        self._structures = [
            engine.compile(Structure.json_object()),
            engine.compile(Structure.regex("[a-z]{3,9}( [a-z]{1,9}){0,6}")),
        ]
        self.stop = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(CLIENTS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for every client to see the end."""
        for thread in self._threads:
            thread.join(30)

    def _ask(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.stop.is_set():
            try:
                self._one(rng)
            except DeltaRTError as error:
                self.outcomes[type(error).__name__] += 1
                time.sleep(0.05)

    def _one(self, rng: random.Random) -> None:
        ids = rng.choice(self._prompts)
        if rng.random() < 0.3:
            ids = (*ids, *rng.choice(self._prompts))
        if rng.random() < 0.02:
            ids = (*ids, 10**9)  # refused
        params = SamplingParams(
            temperature=rng.choice([0.0, 1.0]), max_new_tokens=rng.choice([5, 40, 200]), seed=rng.randrange(2**32),
            ignore_eos=rng.random() < 0.2, frequency_penalty=rng.choice([0.0, 0.4]),
        )  # fmt: skip
        deadline = time.monotonic() + 0.3 if rng.random() < 0.05 else None
        structure = rng.choice(self._structures) if rng.random() < 0.1 else None
        handle = self._engine.submit(
            Request(ids, params, n=rng.choice([1, 1, 1, 3]), deadline=deadline, structure=structure)
        )
        if rng.random() < 0.15:
            time.sleep(rng.random() * 0.2)
            handle.cancel()
        for delta in handle:
            if delta.finish_reason:
                self.outcomes[delta.finish_reason] += 1


def resident_bytes() -> int:
    """Of this process, mapped files left out."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


def soak(artifact: Path, minutes: float) -> dict[str, Any]:
    """The figures of one run."""
    options = EngineOptions(slots=6, cache_bytes=60_000_000, queue=64, max_model_len=2048)
    engine = Engine.open(artifact, threads=1, options=options)
    load = Load(engine)
    load.start()
    began, samples = time.monotonic(), list[tuple[float, int]]()
    while time.monotonic() - began < minutes * 60:
        time.sleep(1)
        samples.append((time.monotonic() - began, resident_bytes()))
        if len(samples) % 60 == 0:
            print(f"{samples[-1][0]:5.0f} s  {samples[-1][1] / 1e6:7.1f} MB  {dict(load.outcomes)}", flush=True)
    closing = time.monotonic()
    engine.close()
    closed = time.monotonic() - closing
    load.stop.set()
    load.join()
    gc.collect()
    left = {"running": engine.metrics.running, "waiting": engine.metrics.waiting, "handles": len(engine._handles)}
    return {
        **drift(samples, minutes),
        "close_seconds": round(closed, 2),
        "left": left,
        "outcomes": dict(load.outcomes),
    }


def drift(samples: Sequence[tuple[float, int]], minutes: float) -> dict[str, Any]:
    """How memory changed after the warm-up, from (seconds, bytes): medians of the first third and of the last."""
    late = [size for at, size in samples if at > WARM_UP * minutes * 60]
    third = max(len(late) // 3, 1)
    before, after = sorted(late[:third])[third // 2], sorted(late[-third:])[third // 2]
    return {
        "minutes": minutes,
        "drift": round(after / before - 1, 4),
        "before_mb": round(before / 1e6, 1),
        "after_mb": round(after / 1e6, 1),
    }


def measured(description: str, minutes: float, run: Callable[[Path, float], dict[str, Any]]) -> dict[str, Any]:
    """The figures of `run` as the command line asks for them, printed and written."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = arguments.artifact or Path(folder) / "nano"
        if not arguments.artifact:
            export_checkpoint(NANO, artifact)
        found = run(artifact, arguments.minutes)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main() -> int:
    """Run it."""
    found = measured(__doc__ or "", 30, soak)
    return int(found["drift"] > DRIFT or found["close_seconds"] > 2 or any(found["left"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
