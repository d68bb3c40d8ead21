"""deltart build: TensorRT plans for an artifact, without its weights and (flavour rtx) without a GPU."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from deltart.runtime.backends.gpu.engine_manifest import EngineManifest

CACHE = Path("~/.cache/deltart/plans")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "build", help="build TensorRT plans for an artifact", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by 'deltart export'")
    parser.add_argument(
        "--flavour",
        choices=["rtx", "tensorrt"],
        help="rtx needs no GPU; tensorrt builds for the GPU of this machine (default: what is installed, rtx first)",
    )
    parser.add_argument(
        "--gpu",
        nargs="+",
        metavar="SM",
        help="rtx: compute capabilities of one plan, or current (default: sm_80 sm_89 sm_120)",
    )
    parser.add_argument("--slots", type=int, default=1, metavar="N", help="sequences decoded together (default 1)")
    parser.add_argument("--max-context", type=int, metavar="N", help="longest sequence (default: the artifact's)")
    parser.add_argument("--chunk", type=int, default=1024, metavar="N", help="tokens of a prefill call (default 1024)")
    parser.add_argument(
        "--prefill-activations",
        choices=["bf16", "fp8"],
        default="bf16",
        help="fp8: prefill rounds the activations of block-FP8 linears to E4M3 per token and 128 values; decode and "
        "verify never do (default bf16: exact)",
    )
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help=f"shared plans (default {CACHE})")
    parser.add_argument("--plugins", type=Path, metavar="FILE", help="C++ plugin library (default: Python classes)")
    parser.add_argument("--json", action="store_true", help="print the plans as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Lower where the artifact has no TensorRT graphs yet, then build, showing each step with its time."""
    from deltart.manifest import load_manifest
    from deltart.runtime.backends.tensorrt.builder.build import DEFAULT_GPUS, TARGET, BuildOptions, build_engine

    began = time.perf_counter()
    with Steps(Console(stderr=True, highlight=False)) as steps:
        if any(TARGET not in graph.files for graph in load_manifest(arguments.artifact).graphs.values()):
            from deltart.export.targets import lower_artifact

            lower_artifact(arguments.artifact, TARGET, steps.line)
        options = BuildOptions(
            flavour=arguments.flavour,
            gpus=tuple(arguments.gpu or DEFAULT_GPUS),
            slots=arguments.slots,
            max_context=arguments.max_context,
            chunk=arguments.chunk,
            prefill_activations=arguments.prefill_activations,
            cache=arguments.cache.expanduser(),
            plugins=arguments.plugins,
        )
        command = shlex.join(["deltart", *sys.argv[1:]])
        engine = build_engine(arguments.artifact, options, command, steps.line, steps.progress)
    _summarize(engine, time.perf_counter() - began, arguments.json)


class Steps:
    """Shows a build: a line with its time for each step; below them, on a terminal, a bar for the one that runs."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("          {task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._console, self._began = console, time.perf_counter()
        self._task = self._bar.add_task("reading the artifact", total=None)

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def line(self, step: str) -> None:
        """A step begins or is done: `build_engine`'s `report`."""
        self._console.print(f"[dim]{time.perf_counter() - self._began:6.1f} s[/]  {step}")
        self._bar.reset(self._task, description=step.split(":")[0], total=None)

    def progress(self, share: float) -> None:
        """`share` of the present step is done: `build_engine`'s `progress`."""
        self._bar.update(self._task, total=1.0, completed=share)


def _summarize(engine: EngineManifest, seconds: float, as_json: bool) -> None:
    if as_json:
        plans = {
            name: {"key": p.key, "bytes": p.nbytes, "scratch_bytes": p.scratch_bytes, "plugins": p.plugins}
            for name, p in engine.plans.items()
        }
        chosen = {"flavour": engine.flavour, "prefill_activations": engine.prefill_activations}
        print(json.dumps({**chosen, "seconds": round(seconds, 2), "plans": plans}))
        return
    table = Table("plan", "key", "MB", "scratch MB", "plugins", "weights bound")
    for name, plan in engine.plans.items():
        weights = sum(b.role == "weight" for b in plan.bindings)
        sizes = (f"{plan.nbytes / 1e6:.1f}", f"{plan.scratch_bytes / 1e6:.1f}")
        table.add_row(name, plan.key, *sizes, str(sum(plan.plugins.values())), str(weights))
    console = Console(highlight=False)
    console.print(table)
    gpus = sorted({gpu for plan in engine.plans.values() for gpu in plan.gpus})
    console.print(f"{engine.flavour} for {', '.join(gpus)}: {seconds:.1f} s")
