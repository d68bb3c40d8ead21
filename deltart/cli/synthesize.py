"""deltart synthesize: a checkpoint without trained weights, random or sparse, for tests and dry runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deltart.cli.bounds import whole
from deltart.cli.steps import Steps
from deltart.cli.streams import plain

# Of `deltart.export.synthetic.presets`, which takes torch to import.
PRESETS = (
    "qwen3.6-27b", "qwen3.6-27b-fp8", "qwen3.6-27b-int4", "qwen3.6-35b-a3b", "qwen3.6-35b-a3b-fp8",
    "qwen3.6-35b-a3b-int4",
    "qwen3.5-0.8b", "qwen3.5-0.8b-int4", "qwen3.5-4b", "qwen3.5-4b-int4", "qwen3.5-9b", "qwen3.5-9b-int4",
    "tiny", "tiny-fp8", "tiny-int4", "tiny-moe", "tiny-moe-fp8", "tiny-moe-int4", "mid", "mid-fp8",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "synthesize", aliases=["synth"], help="write a synthetic checkpoint of a preset", description=__doc__
    )
    parser.add_argument("preset", help=", ".join(PRESETS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="new folder to write")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)
    parser.add_argument("--sparse", action="store_true", help="true names, shapes and sizes, holes for data")
    parser.set_defaults(run=run, extra="export")


def run(arguments: argparse.Namespace) -> None:
    """Write the checkpoint and say where."""
    from deltart.export.synthetic.write import synthesize

    with Steps("reading the preset") as steps:
        synthesize(arguments.preset, arguments.output, seed=arguments.seed, sparse=arguments.sparse, log=steps.line)
    how = "sparse" if arguments.sparse else f"seed {arguments.seed}"
    how = "sparse" if arguments.sparse else f"seed {arguments.seed}"
    print(plain(f"{arguments.output}: {arguments.preset}, {how}"))
