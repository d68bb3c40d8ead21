"""deltart merge: base checkpoint and LoRA adapter in, merged checkpoint out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.screen import console, line
from deltart.cli.steps import Steps
from deltart.cli.streams import print_json
from deltart.plurals import counted

if TYPE_CHECKING:
    from deltart.export.merge.pipeline import MergeRecord


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "merge", help="merge a LoRA adapter into its base checkpoint, as PEFT does", description=__doc__
    )
    parser.add_argument("base", type=Path, help="checkpoint folder of the model that was fine-tuned: BF16, F16 or F32")
    parser.add_argument(
        "adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors: LoRA or DoRA"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint folder to create")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a merged checkpoint that is already there; never another"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    parser.set_defaults(run=run, extra="export", interrupted="the same command goes on from here")


def run(arguments: argparse.Namespace) -> None:
    """Merge, showing each step with its time."""
    with Steps("reading base and adapter") as steps:
        from deltart.export.merge.pipeline import merge

        record = merge(
            arguments.base,
            arguments.adapter,
            arguments.output,
            overwrite=arguments.overwrite,
            log=steps.line,
            progress=steps.progress,
        )
    _summarize(record, arguments.output, steps.seconds, arguments.json)


def _summarize(record: MergeRecord, output: Path, seconds: float, as_json: bool) -> None:
    counts = dict(sorted(record.counts().items()))
    if as_json:
        summary = {"checkpoint": str(output), "seconds": round(seconds, 2), "base_model": record.base_model}
        print_json(summary | {"adapter": record.adapter, "tensors": counts, "notes": record.notes})
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    text = f": {counted(len(record.weights), 'tensor')} merged ({kinds}), {seconds:.1f} s"
    console().print(line(str(output), "bold") + line(text))
