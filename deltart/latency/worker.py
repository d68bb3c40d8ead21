"""The process that is measured: one engine, told by lines of JSON on its input what to do, answering in kind.

It runs by its path under any Python that has a deltart of its own, so that two versions can be measured in turns. So it
imports nothing of this folder, and of deltart only what its users do.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltart.runtime.engine import Engine
    from deltart.runtime.handle import Handle

SETTLE = 2  # steps of a decode that are left out: in the first of them other rows' prompts are still read
SHARE_OF_IDS = 0.9  # the last ids of a vocabulary have meanings: marks, media, padding
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "numpy")


class Worker:
    """One engine and what is asked of it. Every operation takes and returns JSON values; seconds are wall time."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.events: list[Any] = []

    def open(
        self, artifact: str, threads: int = 0, target: str = "auto", weights: str = "folded", **options: Any
    ) -> Any:
        """Opens an engine in place of the last; `options` are fields of EngineOptions. Returns what that took."""
        self.close()
        began = time.perf_counter()
        from deltart import version as own
        from deltart.runtime.engine import Engine, EngineOptions

        imported = time.perf_counter()
        kinds: dict[str, Any] = {"target": target, "weights": weights}
        self.engine = Engine.open(Path(artifact), threads=threads, options=EngineOptions(**options), **kinds)
        self.engine.metrics.listeners.append(self.events.append)
        return {
            "import_seconds": imported - began,
            "open_seconds": time.perf_counter() - imported,
            "max_context": self.engine.max_context,
            "home": str(Path(own.__file__).parent),
        }

    def versions(self) -> Any:
        """Versions of deltart and of what it runs on."""
        return _versions()

    def close(self) -> Any:
        """Closes the engine, if there is one."""
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        self.events.clear()
        return {}

    def prompt(self, tokens: int, seed: int, fresh: bool = True) -> Any:
        """Reads a prompt of random ids up to its first token. `fresh`: nothing of it is found among kept prefixes."""
        usage = self._submit(tokens, seed, new=1, salt=f"{time.monotonic_ns()}" if fresh else "kept").result()[0].usage
        return {"seconds": usage.first_token_seconds, "cached": usage.cached_tokens}

    def decode(self, context: int, rows: int, steps: int, seed: int = 0) -> Any:
        """Seconds between tokens, of `steps` steps in which `rows` sequences run together over `context` tokens.

        The prompt's prefix is kept, so that only the first call of its kind reads it.
        """
        new = steps + SETTLE + 4 * rows + 8
        self.events.clear()
        handles = [self._submit(context, seed, new, "kept") for _ in range(rows)]
        for handle in handles:
            handle.result()
        return {"gaps": _gaps(self.events, rows, steps)}

    def acceptance(self) -> Any:
        """Share of right drafts by position, given that those before were right, since the engine was opened."""
        assert self.engine is not None
        return {"acceptance": self.engine.metrics.drafts.acceptance(), "chosen": self.engine.metrics.drafts.choose(1)}

    def replies(self, prompts: list[list[int]], new: int) -> Any:
        """Greedy replies to the prompts, one after the other: tokens after the first, and their seconds."""
        tokens, seconds = 0, 0.0
        for ids in prompts:
            usage = self._request(ids, new, f"{time.monotonic_ns()}").result()[0].usage
            tokens += usage.completion_tokens - 1
            seconds += usage.total_seconds - usage.first_token_seconds
        return {"tokens": tokens, "seconds": seconds}

    def memory(self) -> Any:
        """Peak resident bytes of this process: all, and without mapped files now."""
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        kib = {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}
        return {"peak_bytes": kib["VmHWM"], "anonymous_bytes": kib["RssAnon"]}

    def _submit(self, tokens: int, seed: int, new: int, salt: str) -> Handle:
        import numpy as np

        assert self.engine is not None
        limit = max(int(self.engine.vocab_limit * SHARE_OF_IDS), 1)
        return self._request(np.random.default_rng(seed).integers(0, limit, tokens).tolist(), new, salt)

    def _request(self, ids: list[int], new: int, salt: str) -> Handle:
        from deltart.runtime.sampling.params import SamplingParams
        from deltart.runtime.sequence import Request

        assert self.engine is not None
        params = SamplingParams(temperature=0, max_new_tokens=new, ignore_eos=True)
        return self.engine.submit(Request(tuple(ids), params, cache_salt=salt))


def _gaps(events: list[Any], rows: int, steps: int) -> list[float]:
    """Seconds a token, of the events from when all rows had their first token and the next steps were over."""
    tokens = [event for event in events if hasattr(event, "first")]
    started = [i for i, event in enumerate(tokens) if event.first]
    following = [event for event in tokens[started[rows - 1] + 1 :] if not event.first][SETTLE * rows :]
    return [event.seconds / event.tokens for event in following[: steps * rows] for _ in range(event.tokens)]


def _versions() -> dict[str, str]:
    from deltart import version as own

    found = {
        "deltart": own.__version__,
        "python": platform.python_version(),
        "source": _source(Path(own.__file__).parent),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _source(package: Path) -> str:
    """A hash of the package's own code: two trees of one version number may differ."""
    digest = hashlib.sha256()
    for folder, _, names in sorted(os.walk(package, followlinks=True)):
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Answer one line after the other until there are no more."""
    sys.path[:] = [place for place in sys.path if Path(place or ".").absolute() != Path(__file__).absolute().parent]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            found = getattr(worker, order.pop("do"))(**order)
        except Exception as error:
            found = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(found), file=answers, flush=True)
    worker.close()


if __name__ == "__main__":
    main()
