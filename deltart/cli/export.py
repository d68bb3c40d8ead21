"""deltart export: checkpoint folder in, artifact folder out."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.bounds import positive, real
from deltart.cli.screen import console, line
from deltart.cli.steps import Steps
from deltart.cli.streams import print_json
from deltart.export.garbage import no_garbage_collection

if TYPE_CHECKING:
    from deltart.manifest import Manifest


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export", help="write ONNX graphs that refer to a checkpoint's own weights", description=__doc__
    )
    parser.add_argument(
        "checkpoint", type=Path, help="Hugging Face checkpoint folder: BF16, F16, F32, FP8, packed int4, or several"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="artifact folder to create")
    parser.add_argument(
        "--max-context", type=positive, metavar="N", help="longest sequence to serve, in tokens (default: the model's)"
    )
    parser.add_argument("--yarn", type=real(1, 1024), metavar="FACTOR", help="stretch the context by static YaRN")
    parser.add_argument("--no-mtp", action="store_true", help="leave the MTP head out")
    parser.add_argument("--text-only", action="store_true", help="leave the vision tower out")
    parser.add_argument(
        "--int4-activations", choices=["exact", "int8"], default="exact",
        help="int8 rounds what goes into packed int4 linears on ONNX Runtime: faster, no longer exact",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an artifact that is already there; never anything else"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run, extra="export")


def run(arguments: argparse.Namespace) -> None:
    """Export, showing each step with its time."""
    with Steps("loading the exporter") as steps, no_garbage_collection():
        from deltart.export.pipeline import export_checkpoint

        manifest = export_checkpoint(
            arguments.checkpoint,
            arguments.output,
            max_context=arguments.max_context,
            yarn=arguments.yarn,
            mtp=not arguments.no_mtp,
            vision=not arguments.text_only,
            int4_activations=arguments.int4_activations,
            overwrite=arguments.overwrite,
            log=steps.line,
        )
    _summarize(manifest, arguments.output, steps.seconds, arguments.json)


def _summarize(manifest: Manifest, output: Path, seconds: float, as_json: bool) -> None:
    fates = Counter[str]()
    for tensor in manifest.tensors.values():
        fates[tensor.fate] += tensor.tensors
    graphs = sorted(path for path in output.iterdir() if path.suffix == ".onnx")
    written = sum(path.stat().st_size for path in output.iterdir() if path.is_file() and path.stat().st_nlink == 1)
    if as_json:
        summary = {"artifact": str(output), "seconds": round(seconds, 2), "bytes_written": written}
        print_json(summary | {"tensors": fates, "graphs": [path.name for path in graphs]})
        return
    out = console()
    out.print(line(str(output), "bold") + line(f": {', '.join(path.name for path in graphs)}"))
    accounted = ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))
    out.print(f"{fates.total()} tensors ({accounted}), {written / 1e6:.1f} MB written, {seconds:.1f} s")
