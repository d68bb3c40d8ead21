"""Figures of the runtime on this machine's CPU: drafts, requests side by side, long prompts, kept prefixes.

    python -m bench.runtime [--artifact DIR] [--json FILE] [SECTION ...]

Every comparison is interleaved in one run; medians and minima. Sections: drafts, batch, longprompt, turns, host.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deltart.export.pipeline import export_checkpoint
from deltart.runtime.conversation import Chats
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request

ROOT = Path(__file__).resolve().parents[1]
NANO, HELDOUT = ROOT / "tools" / "nano" / "checkpoint", ROOT / "tools" / "nano" / "heldout.jsonl"
GREEDY = SamplingParams(temperature=0, max_new_tokens=160)
ROUNDS = 5

Figures = dict[str, Any]


def questions(engine: Engine, count: int) -> list[tuple[int, ...]]:
    """Prompts of the held-out set, spread over its kinds."""
    lines = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
    chosen = lines[:: max(1, len(lines) // count)][:count]
    chats = Chats(engine)
    return [chats.prompt(line["messages"], line.get("tools")).ids for line in chosen]


@contextmanager
def opened(artifact: Path, threads: int, **options: Any) -> Iterator[Engine]:
    """An engine with these options."""
    with Engine.open(artifact, threads=threads, options=EngineOptions(**options)) as engine:
        yield engine


def rate(engine: Engine, prompts: list[tuple[int, ...]]) -> tuple[float, list[list[int]]]:
    """Tokens a second after the first of each reply, one request after the other; and the replies."""
    tokens, seconds, replies = 0, 0.0, list[list[int]]()
    for ids in prompts:
        completion = engine.generate(ids, GREEDY)
        usage = completion.usage
        tokens += usage.completion_tokens - 1
        seconds += usage.total_seconds - usage.first_token_seconds
        replies.append(completion.tokens)
    return tokens / seconds, replies


def drafts(artifact: Path, threads: int) -> Figures:
    """Greedy replies with 0 to 4 drafts, and with as many as pay by measurement."""
    engines = {k: Engine.open(artifact, threads=threads, options=EngineOptions(slots=1, cache_bytes=0, draft_tokens=k))
               for k in (0, 1, 2, 3, 4, None)}  # fmt: skip
    try:
        prompts = questions(engines[0], 24)
        rates: dict[Any, list[float]] = {k: [] for k in engines}
        expected = rate(engines[0], prompts)[1]
        for _ in range(ROUNDS):
            for k, engine in engines.items():
                found, replies = rate(engine, prompts)
                assert replies == expected, f"{k} drafts change a text"
                rates[k].append(found)
        return {
            str(k): {
                "tokens_per_s": round(median(found), 1),
                "best": round(max(found), 1),
                "gain": round(median(f / base for f, base in zip(found, rates[0], strict=True)), 3),
                "acceptance": [round(a, 3) for a in engines[k].metrics.drafts.acceptance()],
                "chosen": engines[k].metrics.drafts.choose(1),
            }
            for k, found in rates.items()
        }
    finally:
        for engine in engines.values():
            engine.close()


def batch(artifact: Path, threads: int) -> Figures:
    """Tokens a second of 8 requests at once over those of one at a time."""
    found: dict[str, list[float]] = {"one": [], "eight": []}
    params = SamplingParams(temperature=0, max_new_tokens=200, ignore_eos=True)
    with opened(artifact, threads, slots=8, cache_bytes=0, draft_tokens=0) as engine:
        prompts = questions(engine, 8)
        for _ in range(ROUNDS):
            for name, groups in (("one", [[ids] for ids in prompts[:2]]), ("eight", [prompts])):
                began, tokens = time.perf_counter(), 0
                for group in groups:
                    handles = [engine.submit(Request(ids, params)) for ids in group]
                    tokens += sum(len(handle.result()[0].tokens) for handle in handles)
                found[name].append(tokens / (time.perf_counter() - began))
    ratios = [b / a for a, b in zip(found["one"], found["eight"], strict=True)]
    return {name: round(median(rates), 1) for name, rates in found.items()} | {"ratio": round(median(ratios), 2)}


def longprompt(artifact: Path, threads: int) -> Figures:
    """Milliseconds between tokens of 4 streams while a prompt of 4096 tokens is read."""
    params = SamplingParams(temperature=0, max_new_tokens=1200, ignore_eos=True)
    gaps: list[float] = []
    with opened(artifact, threads, slots=8, cache_bytes=0, draft_tokens=0) as engine:
        prompts = questions(engine, 4)
        text = np.random.default_rng(0).integers(0, engine.vocab_limit, 4096).tolist()
        handles = [engine.submit(Request(ids, params)) for ids in prompts]
        reading = threading.Event()

        def listen(index: int) -> None:
            last = None
            for delta in handles[index]:
                now = time.perf_counter()
                if last is not None and reading.is_set() and delta.tokens:
                    gaps.append(now - last)
                last = now

        threads_ = [threading.Thread(target=listen, args=(i,)) for i in range(len(handles))]
        for thread in threads_:
            thread.start()
        time.sleep(0.5)
        reading.set()
        long = engine.submit(Request(tuple(text), SamplingParams(temperature=0, max_new_tokens=1)))
        long.result()
        reading.clear()
        for handle in handles:
            handle.cancel()
        for thread in threads_:
            thread.join()
    p50, p99 = np.percentile(gaps, [50, 99]) * 1e3
    return {"gaps": len(gaps), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "ratio": round(p99 / p50, 2),
            "long_prompt_seconds": round(long.usage.first_token_seconds, 2)}  # fmt: skip


def turns(artifact: Path, threads: int) -> Figures:
    """Time to the first token of a second turn after about 2000 tokens, with and without kept prefixes."""
    words = "the quick brown fox jumps over the lazy dog and runs away " * 36
    found: Figures = {}
    for preserve in (False, True):
        times: dict[str, list[float]] = {"cold": [], "kept": []}
        with opened(artifact, threads, slots=1) as kept, opened(artifact, threads, slots=1, cache_bytes=0) as cold:
            for round_ in range(ROUNDS):
                first = [{"role": "user", "content": f"{round_} {words}"}]
                for name, engine in (("kept", kept), ("cold", cold)):
                    chats = Chats(engine)
                    reply = chats.reply(first, params=GREEDY, preserve_thinking=preserve)
                    second = [*first, reply.message(), {"role": "user", "content": "Hello!"}]
                    usage = chats.reply(second, params=GREEDY, preserve_thinking=preserve).completion.usage
                    times[name].append(usage.first_token_seconds)
        ratio = median(c / k for c, k in zip(times["cold"], times["kept"], strict=True))
        found["preserve_thinking" if preserve else "thinking stripped"] = {
            "prompt_tokens": usage.prompt_tokens,
            **{f"{name}_ms": round(median(values) * 1e3, 1) for name, values in times.items()},
            "ratio": round(ratio, 1),
        }
    return found


def host(artifact: Path, threads: int) -> Figures:
    """Milliseconds of a step of one row, and how much of it is not the session's."""
    with opened(artifact, threads, slots=1, cache_bytes=0, draft_tokens=0) as engine:
        text = engine._slots._text  # type: ignore[attr-defined]
        inside: list[float] = []
        real: Callable[..., Any] = text._session.run_with_iobinding

        def timed(binding: Any) -> None:
            began = time.perf_counter()
            real(binding)
            inside.append(time.perf_counter() - began)

        class Session:
            run_with_iobinding = staticmethod(timed)
            io_binding = text._session.io_binding

        text._session = Session()
        ids = questions(engine, 1)[0]
        params = SamplingParams(temperature=0, max_new_tokens=800, ignore_eos=True)
        stamps = [time.perf_counter() for delta in engine.submit(Request(ids, params)) if delta.tokens]
    step = np.diff(stamps) * 1e3
    session = np.array(inside[-len(step) :]) * 1e3
    beyond = step - session
    figures = {"step_ms": step, "session_ms": session, "beyond_ms": beyond}
    return {name: round(float(np.median(values)), 3) for name, values in figures.items()}


SECTIONS = {"drafts": drafts, "batch": batch, "longprompt": longprompt, "turns": turns, "host": host}


def main() -> None:
    """Run the sections and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--artifact", type=Path, help="default: the built-in checkpoint, exported now")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = arguments.artifact or Path(folder) / "nano"
        if not arguments.artifact:
            export_checkpoint(NANO, artifact)
        found: Figures = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
        for name in arguments.sections or SECTIONS:
            found[name] = SECTIONS[name](artifact, arguments.threads)
            print(name, json.dumps(found[name], indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
