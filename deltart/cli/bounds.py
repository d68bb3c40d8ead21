"""Types of command-line options, checked and bounded before any work begins."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from deltart.errors import DeltaRTError
from deltart.json_files import parse_json


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an integer from {low} to {high}")
        return value

    return parse


def positive(text: str) -> int:
    """An argparse type: an integer from 1 to what native code counts with."""
    return whole(1, 2**31 - 1)(text)


def real(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def json_object(text: str) -> dict[str, Any]:
    """An argparse type: a JSON object."""
    try:
        value = parse_json(text, "it")
    except DeltaRTError as error:
        raise argparse.ArgumentTypeError(error.found) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("it is no JSON object")
    return value
