"""Bugs planted in the kernels of the int4 linears are caught by their tests' checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_int4_linear_kernels as int4
from test_planted_bugs_linear import PLUGINS, passes_check, sources

from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE
from deltart.plugins.int4_linear.inputs import Shape

__all__ = ["sources"]  # the fixture
ORDERS = (FORWARD, REVERSE)


def multiplies(op: Path) -> bool:
    """An odd number of groups, so that every other row's scales begin within a word."""
    kernels = int4.module(folder=op)
    shapes = [Shape(1, tokens, 145, 2592, 32, "f32") for tokens in (1, 20)]
    return all(int4.check(kernels, shape, order) for shape in shapes for order in ORDERS)


def gates(op: Path) -> bool:
    return int4.gates(int4.module(folder=op), Shape(1, 3, 48, 1312, 32, "f32"))


def projects(op: Path) -> bool:
    shape = Shape(1, 3, k=288, group=32, dtype="f32")  # two parts of K, four of the plain weights'
    return int4.projects(int4.module("projections", op), shape, (272, 40), (48, 47))


def multiplies_many(op: Path) -> bool:
    shapes = (Shape(1, 300, 136, 1056, 32), Shape(1, 70, 40, 2080, 32))
    return all(int4.multiplies_many(int4.module("prefill", op), shape, order) for shape in shapes for order in ORDERS)


TILE, PREFILL, SEVERAL, COMMON = "decode.cuh", "prefill.cu", "projections.cuh", "../common/int4.cuh"
# What is wrong: the file, its line, what replaces it, and the check that fails.
BUGS: dict[str, tuple[str, str, str, Callable[[Path], bool]]] = {
    "stage read before it is there": (TILE, "      wait_copies<kStages - 2>();\n", "", multiplies),
    "stage waited for too late": (TILE, "wait_copies<kStages - 2>()", "wait_copies<kStages - 1>()", multiplies),
    "stage that is still to be read filled": (TILE, "stage ? stage - 1 : kStages - 1)", "stage)", multiplies),
    "the stage after": (TILE, "multiply(block, stage);", "multiply(block, (stage + 1) % kStages);", multiplies),
    "copies of a stage not committed": (TILE, "    commit_copies();\n", "", multiplies),
    "a block of K skipped": (
        TILE,
        "block + (kStages - 1) * step, blocks",
        "block + kStages * step, blocks",
        multiplies,
    ),
    "pieces not swizzled": (
        TILE,
        "from + at(lane % 16, i + lane / 16)",
        "from + lane % 16 * kRowBytes + (i + lane / 16) * 16",
        multiplies,
    ),
    "the other half's rows": (TILE, "words[i % 2 * 2 + j % 2]", "words[i % 2 * 2 + 1 - j % 2]", multiplies),
    "scale of row g for both": (TILE, "scale_of(from, g + 8, block, i)", "scale_of(from, g, block, i)", multiplies),
    "scale of the piece before": (TILE, "g, block, i), scale_of", "g, block, max(i - 1, 0)), scale_of", multiplies),
    "up with the scales of gate": (TILE, ", scale.data = other.scale.data", "", gates),
    "a nibble of its own sign": (COMMON, "0x43004300u", "0x43084308u", multiplies),
    "the nibble beside": (COMMON, "word >> 4 * i & 0x000f000fu", "word >> 4 * (i ^ 1) & 0x000f000fu", multiplies),
    "activations in their own order": (
        COMMON,
        "first[0] = (a & 0xffffu) | c << 16, first[1] = a >> 16 | (c & 0xffff0000u);",
        "first[0] = a, first[1] = b;",
        multiplies,
    ),
    "scales from the word's begin": (COMMON, "[odd + group - first]", "[group - first]", multiplies),
    "a word of scales too few": (COMMON, "(count * 2 + 5) / 4", "(count * 2 + 3) / 4", multiplies),
    "blocks of the plain weights miscounted": (
        SEVERAL,
        "in.plain_y, kRows, block",
        "in.plain_y, kRows * in.row_groups, block",
        projects,
    ),
    "tiles read before they are there": (PREFILL, "      wait_copies<kStages - 2>();\n", "", multiplies_many),
    "tiles overwritten too early": (PREFILL, "      __syncthreads();\n", "", multiplies_many),
    "scale of the column beside": (PREFILL, "scale[n][e % 2]", "scale[n][0]", multiplies_many),
    "scale of the block before": (
        PREFILL,
        "first_row + r, step * kPieces, i);\n#pragma",
        "first_row + r, step * kPieces, 0);\n#pragma",
        multiplies_many,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    name, right, wrong, passes = BUGS[bug]
    source = sources / "int4_linear" / name
    text = source.read_text()
    source.write_text(text.replace(right, wrong))
    assert not passes_check(passes, sources / "int4_linear")


@pytest.mark.slow
def test_an_unbroken_copy_passes(sources: Path) -> None:
    assert all(passes(sources / "int4_linear") for *_, passes in BUGS.values())


def test_the_lines_to_break_are_there() -> None:
    counts = {bug: (PLUGINS / "int4_linear" / name).read_text().count(right) for bug, (name, right, *_) in BUGS.items()}
    assert set(counts.values()) == {1}, counts
