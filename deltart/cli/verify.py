"""deltart verify: an artifact against transformers, between its targets, and against its engine; layer by layer.

Where the artifact sees, a picture and a video go through its vision tower, block by block, and through a prompt each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltart import caches
from deltart.cli import cache_option
from deltart.cli.bounds import positive, whole
from deltart.cli.screen import console, line, table
from deltart.cli.steps import Steps
from deltart.errors import GenerationError, OutputError
from deltart.files import write_atomically

if TYPE_CHECKING:
    from deltart.manifest import Manifest
    from deltart.verify.compare import VerifyReport

# What tells a file of each kind that verify writes, within so many bytes of its beginning or its end.
SIGNS = {
    "page": b"<title>deltart verify: ",
    "report": b'"tolerances": {',
    "outputs": b'"polygraphy_class": "RunResults"',
}
SIGNED_BYTES = 4096


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify", help="compare an artifact with transformers, layer by layer", description=__doc__
    )
    parser.add_argument("artifact", type=Path, help="folder written by `deltart export`")
    parser.add_argument(
        "--tokens", type=positive, default=100, metavar="N", help="how many tokens to run (default 100, random)"
    )
    parser.add_argument(
        "--prefill",
        type=positive,
        metavar="N",
        help="how many of the tokens go in the first call; the rest follow one by one (default: 3/4)",
    )
    parser.add_argument(
        "--prefill-activations",
        choices=["auto", "bf16", "fp8"],
        default="auto",
        help="fp8: show what E4M3 activations of block-FP8 linears cost in prefill; auto: where an engine rounds them, "
        "which then may be off by three times as much, besides; bf16: never, and such an engine has a bound for gross "
        "errors alone (default auto)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="run this text's tokens instead")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help='compare greedy replies too, and run these tokens: a JSON object a line with "messages" or "prompt"',
    )  # fmt: skip
    parser.add_argument("--count", type=positive, default=20, metavar="N", help="how many of the prompts (default 20)")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=128, metavar="N", help="longest reply, in tokens (default 128)"
    )
    parser.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, help="seed of the random tokens")
    parser.add_argument("--weights", choices=["folded", "mapped"], default="folded", help="see deltart generate")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the report (default: ARTIFACT/report.html)")
    parser.add_argument("--save-outputs", type=Path, metavar="FILE", help="keep all outputs, for polygraphy")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    cache_option.add(parser)
    parser.set_defaults(run=run, extra="verify")


def run(arguments: argparse.Namespace) -> int:
    """Compare, write report.html and report.json, print a table. Returns 1 when a tolerance is broken."""
    from deltart.artifact import load_manifest
    from deltart.verify.artifact_runners import ArtifactRunners
    from deltart.verify.compare import collect, judge
    from deltart.verify.page import page
    from deltart.verify.tolerances import FP8_PREFILL, tolerances

    manifest = load_manifest(arguments.artifact)
    prompts = _prompts(arguments)
    ids = _ids(arguments, manifest, prompts)
    prefill = len(ids) * 3 // 4 if arguments.prefill is None else arguments.prefill
    if not 1 <= prefill <= len(ids):
        raise GenerationError(f"--prefill {prefill}", f"1 to {len(ids)}, the tokens to run")
    target = arguments.html or arguments.artifact / "report.html"
    signs = {target: SIGNS["page"], target.with_suffix(".json"): SIGNS["report"]}
    for path, sign in (signs | ({arguments.save_outputs: SIGNS["outputs"]} if arguments.save_outputs else {})).items():
        _check_replaceable(path, sign)
    with Steps("reading the artifact") as steps:
        runners = ArtifactRunners(
            arguments.artifact, manifest, prefill, arguments.weights, arguments.prefill_activations,
            arguments.max_new_tokens if prompts else None, caches.folder(caches.PLANS),
        )  # fmt: skip
        found = collect(runners.by_name(), ids, prompts, steps.line, runners.shown(ids))
        twins = runners.twins()
        alone = [FP8_PREFILL, *(name for name in runners.rounding() if name not in twins)]
        allowed = tolerances(alone, manifest.int4_activations, runners.fp8_heads())
        report = judge(arguments.artifact, found, allowed, twins)
    try:
        if arguments.save_outputs:
            found.save(arguments.save_outputs)
        write_atomically(target, page(report).encode())
        report.save(target.with_suffix(".json"))
    except OSError as error:
        raise OutputError(f"cannot write the report ({error})", "a writable place", "name one with --html") from error
    if arguments.json:
        print(report.text(), end="")
    else:
        _print(report, target)
    return 0 if report.passed else 1


def _check_replaceable(path: Path, sign: bytes) -> None:
    """Raises OutputError for a file with something in it that no verify wrote. A link is replaced, not followed."""
    if path.is_symlink() or not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(SIGNED_BYTES)
        file.seek(max(0, path.stat().st_size - SIGNED_BYTES))
        if head and sign not in head + file.read():
            raise OutputError(
                f"{path} exists, and is no earlier result of verify", "a free name", "choose another, or move it away"
            )


def _prompts(arguments: argparse.Namespace) -> list[list[int]]:
    if arguments.prompts is None:
        return []
    from deltart.verify.runners import read_prompts

    return read_prompts(arguments.prompts, arguments.artifact, arguments.count)


def _ids(arguments: argparse.Namespace, manifest: Manifest, prompts: list[list[int]]) -> np.ndarray:
    """The tokens that every runner is fed: the text's, the prompts' one after another, or random ones."""
    from deltart.runtime.text.tokenizer import Tokenizer

    if arguments.prompt is not None:
        ids = np.array(Tokenizer.from_folder(arguments.artifact).encode(arguments.prompt), np.int64)
    elif prompts:
        ids = np.concatenate(prompts)[: max(arguments.tokens, 0)].astype(np.int64)
    else:
        known = manifest.vocab_size
        if "tokenizer.json" in manifest.text_files:  # rows beyond the tokenizer's are padding: they were never trained
            known = min(known, Tokenizer.from_folder(arguments.artifact).vocab_limit)
        ids = np.random.default_rng(arguments.seed).integers(0, known, max(arguments.tokens, 0))
    if not 1 <= len(ids) <= manifest.max_context:
        raise GenerationError(f"{len(ids)} tokens to run", f"1 to {manifest.max_context}")
    return ids


def _print(report: VerifyReport, target: Path) -> None:
    from deltart.verify.page import compared_points
    from deltart.verify.tolerances import TWIN_SHARE

    runners = list(dict.fromkeys(d.runner for d in report.differences))
    errors = {(d.point, d.runner): d.relative_rms for d in report.differences}
    against = {d.point: "" if d.against == report.reference else f" against {d.against}" for d in report.differences}
    rows = []
    for point in compared_points(report):
        cells = (f"{errors[point, r]:.1e}" if (point, r) in errors else "" for r in runners)
        rows.append((point.removesuffix(".h") + against[point], *cells))
    title = f"relative RMS against {report.reference}, {report.tokens} tokens"
    shown, out = table(("point", *runners), rows, title), console()
    shown.add_section()
    shown.add_row("greedy tokens", *(f"{report.greedy[r]:.1%}" for r in runners))
    out.print(shown)
    for medium in report.shown:
        out.print(line(medium))
    for agreement in report.replies:
        out.print(f"{agreement.runner}: {agreement}")
    for runner, twin in report.twins.items():
        out.print(
            line(
                f"{runner} rounds activations in prefill, and may be off by {TWIN_SHARE} times what {twin} is, besides"
            )
        )
    for reason in dict.fromkeys(report.skipped.values()):
        names = ", ".join(name for name, why in report.skipped.items() if why == reason)
        out.print(line(f"{names} did not run: {reason}"))
    verdict = "passed" if report.passed else "FAILED"
    if report.reference != report.outside:
        verdict = f"NOT VERIFIED: {report.outside}, the outside reference, did not run"
    out.print(line(verdict, "bold") + line(f"; {target} has the plot"))
