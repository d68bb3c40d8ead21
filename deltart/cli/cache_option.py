"""`--cache DIR`, for every command that keeps or loads compiled code; DELTART_CACHE where it is not given."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from deltart import caches


def add(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    text = f"compiled kernels and plans (default: {caches.VARIABLE}, else your cache folder: see deltart doctor)"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=text)


def apply(arguments: argparse.Namespace) -> None:
    """Keep caches where the option, or else the variable, says; does nothing for a command without the option."""
    chosen = getattr(arguments, "cache", None) or os.environ.get(caches.VARIABLE)
    caches.move(Path(chosen) if chosen else None)
