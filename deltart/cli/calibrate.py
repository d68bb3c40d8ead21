"""deltart calibrate: a BF16 checkpoint in; an FP8 block-128 checkpoint out, or one in int4."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltart.cli.bounds import real
from deltart.cli.steps import Steps
from deltart.errors import CalibrationError

if TYPE_CHECKING:
    from deltart.calib.formats import Format


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "calibrate",
        help="quantize a BF16 checkpoint to the vendor's FP8 block-128 layout, or to int4",
        description=__doc__,
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face checkpoint folder, not quantized")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; must not hold anything")
    parser.add_argument(
        "--format",
        choices=["fp8", "int4"],
        default="fp8",
        help="the vendor's E4M3 with a scale per 128 x 128 values (default), or symmetric int4 in groups of a row, "
        "packed as compressed-tensors does",
    )
    parser.add_argument(
        "--group", type=int, choices=[32, 128], metavar="N", help="values that share an int4 scale: 32 or 128 (default)"
    )
    parser.add_argument(
        "--method",
        choices=["absmax", "mse", "hessian"],
        default="hessian",
        help="scales by absmax, by weight error, or rounding by output error (default)",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="calibration text, JSON lines of messages or text; 'default' for the set that ships with deltart, "
        "which is what hessian, --kv-cache, --activations and --budget take when this is left out",
    )
    parser.add_argument(
        "--kv-cache", action="store_true", help="also write scales of an FP8 KV cache, under the names that vLLM reads"
    )
    parser.add_argument("--activations", action="store_true", help="also write static activation scales")
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="quantize only what these name, e.g. mlp layers.3")
    parser.add_argument("--keep", nargs="+", metavar="NAME", default=[], help="leave what these name in BF16")
    parser.add_argument(
        "--budget",
        type=real(0, 1e6),
        metavar="NATS",
        help="also report what to keep in BF16 for this loss (KL)",
    )
    parser.add_argument("--statistics", type=Path, metavar="FOLDER", help="keep statistics of inputs here for reuse")
    parser.set_defaults(run=run, extra="calib", interrupted="the same command goes on from here")


def run(arguments: argparse.Namespace) -> None:
    """Calibrate and print what came of it."""
    from deltart.calib.page import NAME
    from deltart.calib.pipeline import calibrate

    with Steps("reading the checkpoint") as steps:
        result = calibrate(
            arguments.checkpoint,
            arguments.output,
            method=arguments.method,
            form=_form(arguments),
            data=_data(arguments),
            kv_cache=arguments.kv_cache,
            activations=arguments.activations,
            modules=arguments.modules,
            keep=arguments.keep,
            budget=arguments.budget,
            statistics=arguments.statistics,
            log=steps.line,
        )
    for variant, found in result.agreement.items():
        print(f"{variant}: KL {found.kl:.3g} nats, top-1 {found.top1:.2%}, perplexity {found.perplexity:.4g}")
    parts = result.sizes.values()
    became = f"{sum(p.before for p in parts) / 1e6:,.1f} MB became {sum(p.after for p in parts) / 1e6:,.1f} MB"
    print(f"{len(result.weights)} linears quantized, {became}; see {arguments.output / NAME}")


def _form(arguments: argparse.Namespace) -> Format:
    from deltart.calib.formats import FP8, Int4Groups

    if arguments.format == "fp8":
        if arguments.group is not None:
            raise CalibrationError("--group without --format int4", "FP8's blocks are 128 x 128", "leave it out")
        return FP8
    return Int4Groups(arguments.group or 128)


def _data(arguments: argparse.Namespace) -> Path | None:
    from deltart.calib.dataset import DEFAULT

    needed = arguments.method == "hessian" or arguments.kv_cache or arguments.activations
    name = arguments.data or ("default" if needed or arguments.budget is not None else None)
    return DEFAULT if name == "default" else Path(name) if name else None
