"""Bugs planted in the LM head and in what makes it E4M3 are caught by their tests' checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_lm_head as head
from test_planted_bugs_linear import sources

from deltart.plugins.lm_head.inputs import Shape
from support.planted import is_caught

__all__ = ["sources"]  # the fixture


def heads(op: Path) -> bool:
    return all(head.check(head.module(op), Shape(2, 700, 144, 350, 9, subset, "f32", "e4m3")) for subset in (0, 300))


TILE, KERNEL, MAKER = "../common/linear_tile.cuh", "kernel.cu", "quantize.cu"
BUGS: dict[str, tuple[str, str, str, Callable[[Path], bool]]] = {
    "a row's scales of another width": (
        TILE,
        "size_t(row) * ((K + kBlock - 1) / kBlock) + block",
        "size_t(row) * (K / kBlock) + block",
        heads,
    ),
    "other lanes' pieces read before they are there": (
        TILE,
        "      __syncwarp();  // the other lanes' pieces are here, and the stage before is free\n",
        "",
        heads,
    ),
    "padding chosen": (KERNEL, "if (id < in.limit)", "if (id >= 0)", heads),
    "the same list's head twice": (KERNEL, "++used[from]", "used[from] += 0", heads),
    "one scale for two rows": (
        TILE,
        "Gathered ? W.scale_of(row[half]",
        "Gathered ? W.scale_of(row[0]",
        heads,
    ),
    "scales by a lane's own columns": (MAKER, "amax = fmaxf(amax, __shfl", "amax = fmaxf(0.0f, __shfl", head.quantizes),
    "the last scale tried": (MAKER, "if (error < least)", "if (error >= 0.0f)", head.quantizes),
    "errors of a lane alone": (MAKER, "    error = warp_sum(error);\n", "", head.quantizes),
    "codes of the row before": (MAKER, "(group / across) * K", "(group / across & ~1ll) * K", head.quantizes),
    "a scale that is not what was tried": (MAKER, "to_float(from_float<bf16>(", "((", head.quantizes),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    name, right, wrong, passes = BUGS[bug]
    assert is_caught(sources / head.FOLDER.name, name, right, wrong, passes)


@pytest.mark.slow
def test_an_unbroken_copy_passes(sources: Path) -> None:
    for passes in {passes for *_, passes in BUGS.values()}:
        assert passes(sources / head.FOLDER.name)


def test_the_lines_to_break_are_there() -> None:
    counts = {bug: (head.FOLDER / name).read_text().count(right) for bug, (name, right, *_) in BUGS.items()}
    assert set(counts.values()) == {1}, counts
