"""deltart plan: what of an artifact fits on a device and how fast it would be there, predicted from its manifest."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.bounds import real, whole
from deltart.cli.screen import console, line, table
from deltart.cli.streams import print_json

if TYPE_CHECKING:
    from deltart.planner.devices import Device
    from deltart.planner.plan import Plan

NOTE = (
    "Predicted, with factors fitted to figures of other engines on GPUs and of at most 16 sequences (bench.planner has "
    "them, and their errors); a CPU's rates are measured now."
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan", help="predict memory and speed on a device", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by `deltart export`; only its manifest is read")
    parser.add_argument(
        "--device", default="all", metavar="NAME",
        help="h100, h200, b200, b300, a100, l40s, rtx-pro-6000, rtx-5090, rtx-4090, dgx-spark, thor, or cpu (this "
        "machine, measured); default: all but cpu, one line each",
    )  # fmt: skip
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument(
        "--context", type=whole(1, 1_048_576), nargs="+", metavar="N", help="tokens of a sequence, up to 1048576"
    )
    sizes.add_argument("--batch", type=whole(1, 256), nargs="+", metavar="B", help="sequences at once, up to 256")
    sizes.add_argument("--replicas", type=whole(1, 4096), default=1, metavar="R", help="independent copies (default 1)")
    sizes.add_argument(
        "--parallel", type=whole(1, 8), default=1, metavar="P",
        help="devices that share every layer (tensor parallel), for planning only: deltart runs replicas (default 1)",
    )  # fmt: skip
    sizes.add_argument("--drafts", type=whole(0, 8), default=0, metavar="K", help="MTP drafts in a step (default 0)")
    sizes.add_argument(
        "--acceptance", type=real(0, 1), default=0.8, metavar="P",
        help="how often a draft is right, given that those before were (default 0.8)",
    )  # fmt: skip
    sizes.add_argument("--kv", choices=["bf16", "fp8"], default="bf16", help="K/V type on GPUs (default bf16)")
    sizes.add_argument(
        "--lm-head", choices=["bf16", "fp8"], default="bf16", help="how GPUs hold the LM head (default bf16)"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Predict and print."""
    from deltart.artifact import load_manifest
    from deltart.planner import devices, plan

    manifest = load_manifest(arguments.artifact)
    everything = arguments.device == "all"
    chosen = list(devices.DEVICES.values()) if everything else [_device(arguments.device)]
    contexts = arguments.context or (plan.CONTEXTS[1:2] if everything else plan.CONTEXTS)
    batches = arguments.batch or (plan.BATCHES[:1] if everything else plan.BATCHES)
    plans = [
        plan.make_plan(
            manifest,
            device,
            contexts,
            batches,
            parallel=arguments.parallel,
            replicas=arguments.replicas,
            drafts=arguments.drafts,
            acceptance=arguments.acceptance,
            cache_bytes=2 if arguments.kv == "bf16" else 1,
            fp8_head=arguments.lm_head == "fp8",
        )
        for device in chosen
    ]
    if arguments.json:
        print_json({"artifact": str(arguments.artifact), "note": NOTE, "plans": [as_json(p) for p in plans]})
        return
    out = console()
    for each in plans if not everything else []:
        out.print(line(_title(each, manifest.max_context)))
        out.print(table(HEADERS, [_row(each, i) for i in range(len(each.points))]))
    if everything:
        rows = [(p.device.title, *_row(p, i)) for p in plans for i in range(len(p.points))]
        out.print(table(("device", *HEADERS), rows))
    out.print(line(NOTE))


HEADERS = ("context", "batch", "GB each", "fits", "ms/step", "tok/s each", "tok/s all", "GB/token", "prompt s", "binds")


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "device": asdict(plan.device),
        "devices": plan.devices,
        "weight_bytes": plan.weights,
        "most_context": plan.most_context,
        "smallest_parallel": plan.smallest_parallel,
        "points": [
            {
                "context": p.context, "batch": p.batch, "memory_bytes": p.memory, "fits": p.fits, "binds": p.binds,
                "step_seconds": p.step.seconds, "step_tokens": p.step_tokens, "step_bytes": p.step.nbytes,
                "step_by_kind": dict(p.step.by_kind), "step_overhead": p.step.overhead,
                "tokens_per_s": p.rate * plan.replicas, "prompt_seconds": p.prompt.seconds,
                "prompt_by_kind": dict(p.prompt.by_kind), "prompt_binds": p.prompt.binds,
            }
            for p in plan.points
        ],
    }  # fmt: skip


def _device(name: str) -> Device:
    from deltart.planner import devices, host

    return host.host_device() if name.lower() == devices.CPU else devices.device(name)


def _title(plan: Plan, limit: int) -> str:
    device, count = plan.device, f"{plan.devices} x " if plan.devices > 1 else ""
    fits = f"one sequence of up to {plan.most_context} tokens" if plan.most_context else "not even the weights"
    room = "" if plan.most_context else f" (enough are {plan.smallest_parallel or 'more than 8'} that share the layers)"
    return (
        f"{count}{device.title}: {device.memory / 1e9:.0f} GB at {device.bandwidth / 1e12:.3g} TB/s, weights "
        f"{plan.weights / 1e9:.1f} GB; fits {fits}{room}. The artifact's context: {limit}"
    )


def _row(plan: Plan, index: int) -> tuple[str, ...]:
    p = plan.points[index]
    tokens = p.batch * p.step_tokens
    return (
        str(p.context), str(p.batch), f"{p.memory / 1e9:.1f}", "yes" if p.fits else "no", f"{p.step.seconds * 1e3:.2f}",
        f"{p.row_rate:.0f}", f"{p.rate * plan.replicas:.0f}", f"{p.step.nbytes / tokens / 1e9:.2f}",
        f"{p.prompt.seconds:.2f}", p.binds,
    )  # fmt: skip
