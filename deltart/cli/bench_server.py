"""`deltart bench URL`: an OpenAI endpoint under load."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from deltart.cli.bounds import positive, real, whole
from deltart.cli.screen import console, line, table
from deltart.cli.streams import print_json
from deltart.latency.workload import WORKLOADS

if TYPE_CHECKING:
    from deltart.latency.sweep import Level

HEADERS = (
    "workload", "at once", "prompt", "first ms 50/90/99", "gap ms 50/90/99", "single gap 99", "tok/s", "answers/s",
    "good/s", "kept", "errors",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Flags of a server's measurement."""
    group = parser.add_argument_group("a server (http://HOST:PORT/v1)")
    group.add_argument("--concurrency", type=whole(1, 1024), nargs="+", default=[1, 4, 16], metavar="N")
    group.add_argument("--requests", type=positive, default=32, metavar="N", help="of each level (default 32)")
    group.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all", help="default: one after the other")
    group.add_argument("--max-tokens", type=positive, default=64, metavar="N", help="of each reply (default 64)")
    group.add_argument("--first-limit", type=real(0, 1e6), default=1.0, metavar="S", help="a good answer's first token")
    group.add_argument("--gap-limit", type=real(0, 1e6), default=0.05, metavar="S", help="and its mean gap (0.05)")
    group.add_argument("--model", default="", help="default: the first that the server names")
    group.add_argument("--api-key", default="", help="default: OPENAI_API_KEY of the environment")
    group.add_argument("--seed", type=whole(0, 2**31), default=0, help="of the workloads")


def is_address(text: str) -> bool:
    """Whether it names a server rather than a folder."""
    return text.startswith(("http://", "https://"))


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Measure and print. Returns 1 where no request was answered."""
    from deltart.latency.endpoint import Endpoint
    from deltart.latency.sweep import QUANTILES, Limits, sweep

    key = arguments.api_key or os.environ.get("OPENAI_API_KEY", "")
    endpoint = Endpoint(arguments.artifact, arguments.model, key)
    limits = Limits(arguments.first_limit, arguments.gap_limit)
    names = list(WORKLOADS) if arguments.workload == "all" else [arguments.workload]
    found = {
        name: sweep(
            endpoint, WORKLOADS[name], arguments.concurrency, count=arguments.requests,
            max_tokens=arguments.max_tokens, limits=limits, seed=arguments.seed, say=lambda t, n=name: say(f"{n}: {t}"),  # type: ignore[misc]
        )
        for name in names
    }  # fmt: skip
    if arguments.json:
        levels = {name: [asdict(level) for level in levels] for name, levels in found.items()}
        print_json({"model": endpoint.model, "quantiles": QUANTILES, "limits": asdict(limits), "levels": levels})
    else:
        out, rows = console(), [_row(name, level) for name, levels in found.items() for level in levels]
        out.print(table(HEADERS, rows, f"{endpoint.model} at {arguments.artifact}"))
        out.print(line(f"good: first token within {limits.first:g} s and a mean gap within {limits.gap:g} s"))
        for error in sorted({error for levels in found.values() for level in levels for error in level.errors}):
            out.print(line(f"error: {error}"))
    return int(not any(level.answered for levels in found.values() for level in levels))


def _row(name: str, level: Level) -> Sequence[str]:
    def ms(values: Sequence[float]) -> str:
        return " / ".join(f"{value * 1e3:.1f}" for value in values)

    single = f"{level.single_gaps[-1] * 1e3:.1f}" if level.single_gaps else "-"
    return (
        name, str(level.concurrency), f"{level.prompt_tokens:.0f}", ms(level.first), ms(level.gap), single,
        f"{level.rate:.0f}", f"{level.requests:.2f}", f"{level.goodput:.2f}", f"{level.cached:.0%}",
        str(sum(level.errors.values())),
    )  # fmt: skip
