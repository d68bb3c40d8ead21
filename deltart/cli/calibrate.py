"""deltart calibrate: a BF16 checkpoint in, an FP8 block-128 checkpoint out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "calibrate", help="quantize a BF16 checkpoint to the vendor's FP8 block-128 layout", description=__doc__
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face checkpoint folder, not quantized")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write; must not hold anything")
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
        "which is what hessian, --kv-cache and --activations take when this is left out",
    )
    parser.add_argument("--kv-cache", action="store_true", help="also write FP8 KV-cache scales")
    parser.add_argument("--activations", action="store_true", help="also write static activation scales")
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="quantize only what these name, e.g. mlp layers.3")
    parser.add_argument("--statistics", type=Path, metavar="FOLDER", help="keep statistics of inputs here for reuse")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Calibrate and print what came of it."""
    from deltart.calib.dataset import DEFAULT
    from deltart.calib.pipeline import calibrate
    from deltart.calib.report import HTML_NAME

    needed = arguments.method == "hessian" or arguments.kv_cache or arguments.activations
    name = arguments.data or ("default" if needed else None)
    result = calibrate(
        arguments.checkpoint,
        arguments.output,
        method=arguments.method,
        data=DEFAULT if name == "default" else Path(name) if name else None,
        kv_cache=arguments.kv_cache,
        activations=arguments.activations,
        modules=arguments.modules,
        statistics=arguments.statistics,
        say=lambda line: print(line, flush=True),
    )
    for variant, found in result.agreement.items():
        print(f"{variant}: KL {found.kl:.3g} nats, top-1 {found.top1:.2%}, perplexity {found.perplexity:.4g}")
    print(f"{len(result.weights)} linears quantized; see {arguments.output / HTML_NAME}")
