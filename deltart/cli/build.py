"""deltart build: plans for an artifact, TensorRT's or of our kernels alone, without its weights and, but for flavour
tensorrt, without a GPU."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart import caches
from deltart.cli import cache_option
from deltart.cli.bounds import whole
from deltart.cli.screen import console, line, table
from deltart.cli.steps import Steps
from deltart.cli.streams import print_json
from deltart.runtime.backends.gpu.limits import MAX_CHUNK, MAX_SLOTS

if TYPE_CHECKING:
    from deltart.runtime.backends.gpu.engine_manifest import EngineManifest, QuantizedHead


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "build", help="build plans for an artifact", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by `deltart export`")
    parser.add_argument(
        "--flavour",
        choices=["rtx", "tensorrt", "native"],
        help="what builds: rtx (TensorRT-RTX) needs no GPU; tensorrt builds for this machine's; native is a list of "
        "launches of our kernels, without TensorRT (default: the installed TensorRT, rtx first)",
    )
    parser.add_argument(
        "--gpu",
        nargs="+",
        metavar="SM",
        help="GPUs that a plan of flavour rtx serves, or current for this machine's (default: sm_80 sm_89 sm_120)",
    )
    parser.add_argument(
        "--slots",
        type=whole(1, MAX_SLOTS),
        default=1,
        metavar="N",
        help="sequences that are decoded together (default 1)",
    )
    parser.add_argument(
        "--max-context",
        type=whole(1, 2**31 - 1),
        metavar="N",
        help="longest sequence, in tokens (default: the artifact's)",
    )
    parser.add_argument(
        "--chunk",
        type=whole(1, MAX_CHUNK),
        metavar="N",
        help="tokens that one prefill call takes (default 1024; 4096 where prompts may be rounded to E4M3, 0.3 GB more "
        "at 27B)",
    )
    parser.add_argument(
        "--prefill-activations",
        choices=["auto", "bf16", "fp8"],
        default="auto",
        help="fp8: prefill rounds the activations of block-FP8 linears to E4M3 per token and 128 values, those of "
        "routed experts on GPUs with a product for that (sm_89, sm_90, sm_120); decode and speculation never do; bf16: "
        "exact; auto: fp8 on GPUs that multiply E4M3 (sm_89 and later), bf16 on others and without block-FP8 weights "
        "(default auto)",
    )
    parser.add_argument(
        "--lm-head",
        choices=["bf16", "fp8"],
        default="bf16",
        help="fp8: loading rounds the LM head to E4M3, with a scale per row and 128 columns; native plans only "
        "(default bf16: as it is stored)",
    )
    cache_option.add(parser)
    parser.add_argument("--plugins", type=Path, metavar="FILE", help="C++ plugin library (default: Python classes)")
    parser.add_argument("--json", action="store_true", help="print the plans as JSON")
    parser.set_defaults(run=run, extra="rtx")


def run(arguments: argparse.Namespace) -> None:
    """Lower where the artifact has no such graphs yet, then build, showing each step with its time."""
    from deltart.artifact import load_manifest
    from deltart.runtime.backends.tensorrt.builder.build import BuildOptions, build_engine
    from deltart.runtime.backends.tensorrt.builder.makers import target_of

    with Steps("reading the artifact") as steps:
        target = target_of(arguments.flavour)
        if any(target not in graph.files for graph in load_manifest(arguments.artifact).graphs_on(target).values()):
            from deltart.export.targets import lower_artifact

            lower_artifact(arguments.artifact, target, steps.line)
        options = BuildOptions(
            flavour=arguments.flavour,
            gpus=tuple(arguments.gpu) if arguments.gpu else None,
            slots=arguments.slots,
            max_context=arguments.max_context,
            chunk=arguments.chunk,
            prefill_activations=arguments.prefill_activations,
            lm_head=arguments.lm_head,
            cache=caches.folder(caches.PLANS),
            plugins=arguments.plugins,
        )
        command = shlex.join(["deltart", *sys.argv[1:]])
        engine = build_engine(arguments.artifact, options, command, steps.line, steps.progress)
    _summarize(engine, steps.seconds, arguments.json)


def _summarize(engine: EngineManifest, seconds: float, as_json: bool) -> None:
    if as_json:
        plans = {
            name: {"key": p.key, "bytes": p.nbytes, "scratch_bytes": p.scratch_bytes, "plugins": p.plugins}
            for name, p in engine.plans.items()
        }
        head = asdict(engine.lm_head) if engine.lm_head else None
        chosen = {"flavour": engine.flavour, "prefill_activations": engine.prefill_activations, "lm_head": head}
        print_json({**chosen, "seconds": round(seconds, 2), "plans": plans})
        return
    rows = []
    for name, plan in engine.plans.items():
        weights = sum(b.role == "weight" for b in plan.bindings)
        sizes = (f"{plan.nbytes / 1e6:.1f}", f"{plan.scratch_bytes / 1e6:.1f}")
        rows.append((name, plan.key, *sizes, str(sum(plan.plugins.values())), str(weights)))
    out = console()
    out.print(table(("plan", "key", "MB", "scratch MB", "ops", "weights bound"), rows))
    gpus = sorted({gpu for plan in engine.plans.values() for gpu in plan.gpus}) or ["any GPU"]
    out.print(f"{engine.flavour} for {', '.join(gpus)}: {seconds:.1f} s")
    if engine.lm_head is not None:
        out.print(line(_head(engine.lm_head)))


def _head(head: QuantizedHead) -> str:
    error = "not measured: the weights are zeros, or not here"
    if head.relative_rms is not None:
        error = f"relative RMS error {head.relative_rms:.2%} (of {head.rows} rows)"
    return f"{head.weight} is rounded to E4M3 when it is loaded: {error}"
