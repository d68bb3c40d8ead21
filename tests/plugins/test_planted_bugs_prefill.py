"""Bugs planted in the kernels of prompts' linears, whose activations are rounded or not, are caught by their tests'
checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import test_fp8_linear_prefill as prefill
from test_planted_bugs_linear import PLUGINS, sources

from deltart.plugins.cpu_shim.runner import REVERSE
from deltart.plugins.fp8_linear.inputs import Shape as LinearShape
from deltart.plugins.fp8_linear.prefill import W8A8, W8A8_WGMMA, W8A16, TileKernel
from support.planted import is_caught

__all__ = ["sources"]  # the fixture


def multiplies_many(op: Path, kernel: TileKernel) -> bool:
    kernels, shape = prefill.module(kernel, op), LinearShape(tokens=300, n=136, k=1040)
    return all(prefill.check(kernels, kernel, shape, order) for order in (0, REVERSE))


def divides(op: Path) -> bool:
    return prefill.divides(prefill.module(W8A8, op))


def adds_splits(op: Path) -> bool:
    shape = LinearShape(tokens=70, n=40, k=2064)
    return all(prefill.check(prefill.module(kernel, op), kernel, shape) for kernel in prefill.KERNELS)


WGMMA, HOPPER, ROUND = "prefill_wgmma.cu", "../common/hopper.cuh", "activations.cuh"
QUANTIZE = "../common/quantize.cuh"
by_w8a16, by_w8a8, by_wgmma = (functools.partial(multiplies_many, kernel=k) for k in (W8A16, W8A8, W8A8_WGMMA))
# What is wrong: the file, its line, what replaces it, and the check that fails.
BUGS: dict[str, tuple[str, str, str, Callable[[Path], bool]]] = {
    "tiles read before they are there": ("prefill.cu", "      wait_copies<kStages - 2>();\n", "", by_w8a16),
    "tiles overwritten too early": ("prefill.cu", "      __syncthreads();\n", "", by_w8a8),
    "last block not scaled": ("prefill.cu", " || step + 1 == stop) promote", ") promote", by_w8a16),
    "scale of another token": ("prefill.cu", "x_scale[m * 16 + half * 8]", "x_scale[m * 16]", by_w8a8),
    "pieces not swizzled": ("../common/tensor_core.cuh", "(piece ^ row % 8)", "piece", by_w8a8),
    "the last part of K left out": ("output.cuh", "split < splits; ++", "split < splits - 1; ++", adds_splits),
    "parts of K on top of each other": ("output.cuh", "size_t(split) * M * N + at", "at", adds_splits),
    "stage read before it is full": (
        WGMMA,
        "    wait(&memory.full[step % kStages], step / kStages % 2);\n",
        "",
        by_wgmma,
    ),
    "stage filled before it is empty": (
        WGMMA,
        "        wait(&memory.empty[stage], step / kStages % 2 ^ 1);\n",
        "",
        by_wgmma,
    ),
    "stage given back after half of the products": (WGMMA, "if (half == 1)", "if (half == 0)", by_wgmma),
    "weights announced on their way": (WGMMA, "        wait_copies<kLag>();\n", "", by_wgmma),
    "weights announced a stage early": (WGMMA, "wait_copies<kLag>()", "wait_copies<kLag + 1>()", by_wgmma),
    "last weights never waited for": (WGMMA, "    wait_copies<0>();\n", "", by_wgmma),
    "weights not shown to the products": (WGMMA, "    fence_async();\n    arrive(", "    arrive(", by_wgmma),
    "sums read before they are there": (WGMMA, "      wait_products<0>(part);\n", "", by_wgmma),
    "products not committed": (WGMMA, "      commit_products();\n", "", by_wgmma),
    "products not fenced": (WGMMA, "      fence_products(part);\n", "", by_wgmma),
    "blocks of K added unscaled": (WGMMA, "k / 16, k > 0)", "k / 16, block > work.first || k > 0)", by_wgmma),
    "scale of half a group": (QUANTIZE, "mask = kQuantizeLanes / 2", "mask = kQuantizeLanes / 4", by_w8a8),
    "second token of a lane not its own": (
        ROUND,
        "token = first + i * kTokensAtOnce;\n    float",
        "token = first;\n    float",
        by_w8a8,
    ),
    "halves of a piece exchanged": (ROUND, "lane % 2 * 8", "(1 - lane % 2) * 8", by_w8a8),
    "guess left as it is": (QUANTIZE, "fmaf(-fmaf(guess, y, -x), inverse, guess)", "guess", divides),
    "no scale of the activations": (WGMMA, "w * x_scale[72]", "w", by_wgmma),
    "weight scale of the block before": (
        WGMMA,
        "work.weight_tile * in.blocks + block]",
        "work.weight_tile * in.blocks + max(block - 1, 0)]",
        by_wgmma,
    ),
    "scales of the next block": (
        WGMMA,
        "size_t(block) * in.token_tiles",
        "size_t(block + 1 < in.blocks ? block + 1 : block) * in.token_tiles",
        by_wgmma,
    ),
    "operands without a swizzle": (HOPPER, "| uint64_t(1) << 62", "| uint64_t(0) << 62", by_wgmma),
    "atoms too close": (HOPPER, "uint64_t(kAtom >> 4) << 32", "uint64_t(kAtom >> 5) << 32", by_wgmma),
    "the same 32 of K again": (WGMMA, "weight + k / 16,", "weight + k / 32,", by_wgmma),
    "the other warpgroup's tokens": (
        WGMMA,
        "describe(stage.x[group])",
        "describe(stage.x[1 - group])",
        by_wgmma,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    name, right, wrong, passes = BUGS[bug]
    assert is_caught(sources / "fp8_linear", name, right, wrong, passes)


@pytest.mark.slow
def test_an_unbroken_copy_passes(sources: Path) -> None:
    for passes in {passes for *_, passes in BUGS.values()}:
        assert passes(sources / "fp8_linear")


def test_the_lines_to_break_are_there() -> None:
    folder = PLUGINS / "fp8_linear"
    counts = {bug: (folder / name).read_text().count(right) for bug, (name, right, *_) in BUGS.items()}
    assert set(counts.values()) == {1}, counts
