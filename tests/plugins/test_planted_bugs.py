"""The harness sees the bugs that kernels like these get: each is planted in the source, and must be caught."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import gdr_on_shim as shim
import numpy as np
import pytest
import test_causal_conv1d as conv
from verify_on_shim import worst_errors

from deltart.errors import BuildError
from deltart.plugins.causal_conv1d.inputs import Shape as ConvShape
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE
from deltart.plugins.gated_delta_rule.inputs import Shape


def decodes(op: Path) -> bool:
    shape = Shape(slots=3, tokens=4, dtype="f32", key_heads=1, value_heads=2)
    run = functools.partial(shim.decode, shim.module("decode", folder=op))
    return shim.within(shape, shim.errors(run, shape))


def verifies(op: Path) -> bool:
    shape = Shape(slots=2, tokens=4, dtype="f32", key_heads=1, value_heads=2)
    return shim.within(shape, worst_errors(shim.module("decode", folder=op), shape, steps=8))


def prefills(op: Path) -> bool:
    shape = Shape(slots=3, tokens=200, dtype="bf16", key_heads=1, value_heads=2)
    kernels = shim.module("prefill", folder=op)
    runs = [functools.partial(shim.prefill, kernels, order=order) for order in (FORWARD, REVERSE)]
    return all(shim.within(shape, shim.errors(run, shape)) for run in runs)


def convolves(op: Path) -> bool:
    return conv.check(conv.module(op), ConvShape(slots=2, tokens=5, channels=64, dtype="f32"), np.array([5, 2]))


def convolution_verifies(op: Path) -> bool:
    return conv.verify_steps(conv.module(op), "f32", steps=8)


GDR, CONV = "gated_delta_rule", "causal_conv1d"
BUGS = {
    "decode without its barrier": (GDR, "decode.cu", "  __syncthreads();\n\n  if", "  if", decodes),
    "padded tokens counted": (GDR, "decode.cu", "n = min(in.n_tokens[slot], in.tokens);", "n = in.tokens;", decodes),
    "output of the wrong column": (
        GDR,
        "decode.cu",
        "at.column + at.lane / 4 % 4;",
        "at.column + at.lane / 8 % 4;",
        decodes,
    ),
    "replay one token short": (GDR, "decode.cu", "t < commit; ++t)", "t < commit - 1; ++t)", verifies),
    "replay from the capsule being written": (GDR, "decode.cu", "= old.k[", "= old.k_out[", verifies),
    "state not committed": (GDR, "decode.cu", "      if (commit) store(tile", "      if (false) store(tile", verifies),
    "scan without its barrier": (GDR, "prefill_scan.cuh", "<0>();\n      __syncthreads();", "<0>();", prefills),
    "scan without waiting for copies": (GDR, "prefill_scan.cuh", "wait_copies<0>();", "", prefills),
    "chunk without a barrier in the merge": (
        GDR,
        "prefill_chunk.cuh",
        "        __syncthreads();\n      }",
        "      }",
        prefills,
    ),
    "chunk overwrites the keys too early": (
        GDR,
        "prefill_chunk.cuh",
        "      __syncthreads();  // the keys",
        "      // the keys",
        prefills,
    ),
    "decay of the wrong token": (
        GDR,
        "prefill_chunk.cuh",
        "g[row].over(g[j])",
        "g[row].over(g[min(j + 1, C - 1)])",
        prefills,
    ),
    "state one input late": (
        CONV,
        "kernel.cu",
        "n - 3 + i, in.channels, last",
        "n - 2 + i, in.channels, last",
        convolves,
    ),
    "conv replay one token short": (
        CONV,
        "kernel.cu",
        "t < commit; ++t)",
        "t + 1 < commit; ++t)",
        convolution_verifies,
    ),
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the kernels that can be patched."""
    plugins = shim.FOLDER.parent
    for path in [*plugins.glob("*/*.cu"), *plugins.glob("*/*.cuh"), *plugins.glob("*/*.hpp")]:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    return tmp_path


@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    op, name, right, wrong, passes = BUGS[bug]
    source = sources / op / name
    text = source.read_text()
    assert text.count(right) == 1, "the line to break is not where it was"
    source.write_text(text.replace(right, wrong))
    assert not _passes(passes, sources / op)


def _passes(check: Callable[[Path], bool], op: Path) -> bool:
    try:
        return check(op)
    except (BuildError, AssertionError):  # a deadlock or a divergent call; an unwritten output
        return False


@pytest.mark.parametrize("check, op", [(decodes, GDR), (verifies, GDR), (prefills, GDR), (convolves, CONV)])
def test_an_unbroken_copy_passes(sources: Path, check: Callable[[Path], bool], op: str) -> None:
    assert check(sources / op)
