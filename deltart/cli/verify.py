"""deltart verify: an artifact against transformers, between its targets, and against its engine; layer by layer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deltart.errors import GenerationError

if TYPE_CHECKING:
    from deltart.runtime.verify import Report, Runner

# Relative RMS. transformers, "portable" and "ort" compute in float32, the engine in bfloat16.
TOLERANCES = {"transformers": 1e-3, "portable": 1e-3, "ort": 1e-3, "engine": 2e-2}
# Shown more than judged: nano's hidden states differ by up to 0.13 on random tokens, its logits by 0.013 on its texts.
FP8_PREFILL = {"fp8 prefill": 0.3, "engine": 0.3}


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify", help="compare an artifact with transformers, layer by layer", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by 'deltart export'")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="random tokens to run (default 100)")
    parser.add_argument(
        "--prefill", type=int, metavar="N", help="of these in one call, the rest one by one (default 3/4)"
    )
    parser.add_argument(
        "--prefill-activations",
        choices=["bf16", "fp8"],
        default="bf16",
        help="fp8: show what 'deltart build --prefill-activations fp8' costs, and allow the engine as much",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="run this text's tokens instead")
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    parser.add_argument("--weights", choices=["folded", "mapped"], default="folded", help="see deltart generate")
    parser.add_argument("--html", type=Path, metavar="FILE", help="default: ARTIFACT/report.html")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, write report.html and report.json, print a table. Returns 1 when a tolerance is broken."""
    from deltart.manifest import load_manifest
    from deltart.runtime.verify import compare
    from deltart.runtime.verify_page import page

    console = Console(stderr=True, highlight=False)
    manifest = load_manifest(arguments.artifact)
    ids = _ids(arguments, manifest.vocab_size, manifest.max_context)
    prefill = len(ids) * 3 // 4 if arguments.prefill is None else arguments.prefill
    if not 1 <= prefill <= len(ids):
        raise GenerationError(f"--prefill {prefill}", f"1 to {len(ids)}, the tokens to run")
    with console.status("verifying") as status:
        tolerances = TOLERANCES | (FP8_PREFILL if arguments.prefill_activations == "fp8" else {})
        report = compare(arguments.artifact, _runners(arguments, prefill), tolerances, ids, status.update)
    target = arguments.html or arguments.artifact / "report.html"
    target.write_text(page(report), encoding="utf-8")
    report.save(target.with_suffix(".json"))
    if arguments.json:
        print(target.with_suffix(".json").read_text(), end="")
    else:
        _print(report, target)
    return 0 if report.passed else 1


def _ids(arguments: argparse.Namespace, vocabulary: int, limit: int) -> np.ndarray:
    if arguments.prompt is not None:
        from deltart.runtime.tokenizer import Tokenizer

        ids = np.array(Tokenizer.from_folder(arguments.artifact).encode(arguments.prompt), np.int64)
    else:
        ids = np.random.default_rng(arguments.seed).integers(0, vocabulary, max(arguments.tokens, 0))
    if not 1 <= len(ids) <= limit:
        raise GenerationError(f"{len(ids)} tokens to run", f"1 to {limit}")
    return ids


def _runners(arguments: argparse.Namespace, prefill: int) -> dict[str, Callable[[], Runner]]:
    """How to make each runner; the imports wait until then."""

    def transformers() -> Runner:
        from deltart.export.reference_model import reference_runner
        from deltart.manifest import load_manifest

        return reference_runner(load_manifest(arguments.artifact))

    def cpu(target: str) -> Runner:
        from deltart.runtime.backends.exposed import ExposedBackend
        from deltart.runtime.verify import backend_runner

        backend = ExposedBackend(arguments.artifact, target, arguments.weights)
        return backend_runner(backend, backend.points, prefill)

    def engine() -> Runner:
        from deltart.runtime.backends.tensorrt import TensorRtBackend
        from deltart.runtime.verify import backend_runner

        return backend_runner(TensorRtBackend(arguments.artifact), [], prefill)

    def fp8_prefill() -> Runner:
        from deltart.export.lower.functions import parse_function
        from deltart.export.lower.portable import fp8_block_linear
        from deltart.runtime.backends.fp8_prefill import Fp8PrefillBackend
        from deltart.runtime.verify import backend_runner

        linear = parse_function(fp8_block_linear({"quantize_activations": 1}))
        backend = Fp8PrefillBackend(arguments.artifact, linear, weights=arguments.weights)
        return backend_runner(backend, backend.points, prefill)

    asked = {"fp8 prefill": fp8_prefill} if arguments.prefill_activations == "fp8" else {}
    return {
        "transformers": transformers,
        "portable": lambda: cpu("portable"),
        "ort": lambda: cpu("ort"),
        **asked,
        "engine": engine,
    }


def _print(report: Report, target: Path) -> None:
    runners = list(dict.fromkeys(d.runner for d in report.differences))
    table = Table("point", *runners, title=f"relative RMS against {report.reference}, {report.tokens} tokens")
    errors = {(d.point, d.runner): d.relative_rms for d in report.differences}
    for point in dict.fromkeys(d.point for d in report.differences):
        table.add_row(
            point.removesuffix(".h"), *(f"{errors[point, r]:.1e}" if (point, r) in errors else "" for r in runners)
        )
    table.add_section()
    table.add_row("greedy tokens", *(f"{report.greedy[r]:.1%}" for r in runners))
    console = Console(highlight=False)
    console.print(table)
    for name, reason in report.skipped.items():
        console.print(f"{name} did not run: {reason}", markup=False)
    console.print(f"[bold]{'passed' if report.passed else 'FAILED'}[/]; {target} has the plot")
