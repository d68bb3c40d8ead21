"""Bugs planted in the kernels of the int4 linears are caught by their tests' checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_int4_linear_kernels as int4
from test_planted_bugs_linear import PLUGINS, sources

from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE
from deltart.plugins.int4_linear.inputs import Shape
from support.planted import is_caught

__all__ = ["sources"]  # the fixture
ORDERS = (FORWARD, REVERSE)


def multiplies(op: Path) -> bool:
    """An odd number of groups, so that every other row's scales begin within a word."""
    kernels = int4.module(folder=op)
    shapes = [Shape(1, tokens, 145, 2592, 32, "f32") for tokens in (1, 20)]
    return all(int4.check(kernels, shape, order) for shape in shapes for order in ORDERS)


def wholes(op: Path) -> bool:
    """Four pieces to a scale, an odd number of groups, and a last block that is not whole."""
    kernels = int4.module(folder=op)
    shapes = [Shape(1, tokens, 145, 2688, 128, "bf16") for tokens in (1, 20)]
    return all(int4.check(kernels, shape, order) for shape in shapes for order in ORDERS)


def by_f16(op: Path) -> bool:
    shapes = [Shape(1, tokens, 145, 2592, 32, "f32", "f16") for tokens in (1, 20)]
    return all(int4.check(int4.module(folder=op), shape) for shape in shapes)


def many_by_f16(op: Path) -> bool:
    return int4.multiplies_many(int4.module("prefill", op), Shape(1, 70, 40, 2080, 32, scale_dtype="f16"))


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
    "the stage after": (
        TILE,
        "multiply<kBf16Scales>(block, stage)",
        "multiply<kBf16Scales>(block, (stage + 1) % kStages)",
        multiplies,
    ),
    "copies of a stage not committed": (TILE, "    commit_copies();\n", "", multiplies),
    "a block of K skipped": (
        TILE,
        "block + (kStages - 1) * step, blocks",
        "block + kStages * step, blocks",
        multiplies,
    ),
    "pieces not swizzled": (
        TILE,
        "at(lane % 16, two + lane / 16)",
        "lane % 16 * kRowBytes + (two + lane / 16) * 16",
        multiplies,
    ),
    "the other half's rows": (TILE, "j % 2 ? bottom : top", "j % 2 ? top : bottom", multiplies),
    "scale of row g for both": (TILE, "scale_at<Type>(at_group + 8", "scale_at<Type>(at_group + 0", multiplies),
    "scale of the piece before": (TILE, "(two + i >> W.scale", "(max(two + i - 1, 0) >> W.scale", multiplies),
    "scale of row g for both in a whole block": (TILE, "W.scale.at(at_group + 8", "W.scale.at(at_group + 0", wholes),
    "one scale for a whole block": (TILE, "(share >> W.scale.shift) * bytes", "0 * bytes", wholes),
    "pieces of a whole block not swizzled": (TILE, "(words_at ^ two * 16)", "words_at + two * 16", wholes),
    "the stage after, whole": (
        TILE,
        "multiply_whole(block, stage)",
        "multiply_whole(block, (stage + 1) % kStages)",
        wholes,
    ),
    "whole blocks' scales from the word's begin": (TILE, " + ((g * W.scale.groups + first) * bytes & 3)", "", wholes),
    "up with the scales of gate": (TILE, ", scale.data = other.scale.data", "", gates),
    "a nibble of its own sign": (COMMON, "0x43004300u", "0x43084308u", multiplies),
    "the nibble beside": (COMMON, "word >> 4 * i, 0x000f000fu", "word >> 4 * (i ^ 1), 0x000f000fu", multiplies),
    "activations in their own order": (
        COMMON,
        "first[0] = low_halves(a, c), first[1] = high_halves(a, c);",
        "first[0] = a, first[1] = b;",
        multiplies,
    ),
    "scales from the word's begin": (TILE, " + ((g * W.scale.groups + first) * kScaleBytes & 3)", "", multiplies),
    "f16 scales read as bf16": (
        TILE,
        "multiply<kF16Scales>(block, stage)",
        "multiply<kBf16Scales>(block, stage)",
        by_f16,
    ),
    "f16 scales of four bytes": (
        COMMON,
        "type == kF32Scales ? 4 : 2",
        "type != kBf16Scales ? 4 : 2",
        by_f16,
    ),
    "f16 scales of a tile read as bf16": (
        PREFILL,
        "in.scale.type == kF16Scales ? scale_at<kF16Scales>(mine)",
        "in.scale.type == kF16Scales ? scale_at<kBf16Scales>(mine)",
        many_by_f16,
    ),
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
    "scale of the piece before it": (PREFILL, "at + (i >> in.scale", "at + (0 >> in.scale", multiplies_many),
    "scales of an even row": (PREFILL, "((j * in.scale.groups + group)", "((group)", multiplies_many),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    name, right, wrong, passes = BUGS[bug]
    assert is_caught(sources / "int4_linear", name, right, wrong, passes)


@pytest.mark.slow
def test_an_unbroken_copy_passes(sources: Path) -> None:
    assert all(passes(sources / "int4_linear") for *_, passes in BUGS.values())


def test_the_lines_to_break_are_there() -> None:
    counts = {bug: (PLUGINS / "int4_linear" / name).read_text().count(right) for bug, (name, right, *_) in BUGS.items()}
    assert set(counts.values()) == {1}, counts
