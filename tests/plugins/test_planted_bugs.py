"""The harness sees the bugs that kernels like these get: each is planted in the source, and must be caught."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import test_causal_conv1d as conv

from deltart.errors import BuildError
from deltart.plugins.causal_conv1d.inputs import Shape as ConvShape
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.launch import Tiling
from support import gdr_on_shim as shim
from support.speculation_on_shim import convolution_holds, worst_errors


def decodes(op: Path) -> bool:
    shape = Shape(slots=3, tokens=4, dtype="f32", key_heads=1, value_heads=2)
    run = functools.partial(shim.decode, shim.module("decode", folder=op), tiles=Tiling(8, 4))
    return shim.within(shape, shim.errors(run, shape))


def speculates(op: Path) -> bool:
    shape = Shape(slots=2, tokens=4, dtype="f32", key_heads=1, value_heads=2)
    return shim.within(shape, worst_errors(shim.module("decode", folder=op), shape, steps=8))


def prefills(op: Path) -> bool:
    shape = Shape(slots=3, tokens=200, dtype="bf16", key_heads=1, value_heads=2)
    kernels = shim.module("prefill", folder=op)
    runs = [functools.partial(shim.prefill, kernels, order=order) for order in (FORWARD, REVERSE)]
    return all(shim.within(shape, shim.errors(run, shape)) for run in runs)


def convolves(op: Path) -> bool:
    return conv.check(conv.module(op), ConvShape(slots=2, tokens=5, channels=64, dtype="f32"), np.array([5, 2]))


def convolution_speculates(op: Path) -> bool:
    return convolution_holds(conv.module(op), "f32", steps=8)


@dataclass(frozen=True)
class Bug:
    """A text of a kernel, what it is replaced by, and the check that must then fail."""

    source: str
    right: str
    wrong: str
    passes: Callable[[Path], bool]


DECODE, CHUNK, SCAN = (f"gated_delta_rule/{name}" for name in ("decode.cuh", "prefill_chunk.cuh", "prefill_scan.cuh"))
CONV = "causal_conv1d/kernel.cu"
BUGS = {
    "decode without its barrier": Bug(DECODE, "  __syncthreads();\n\n  o +=", "  o +=", decodes),
    "decode without waiting for copies": Bug(DECODE, "wait_copies<0>();", "", decodes),
    "padded tokens counted": Bug(DECODE, "n = min(in.n_tokens[slot], in.tokens);", "n = in.tokens;", decodes),
    "output of the wrong column": Bug(DECODE, "lane / 4 % 4;\n  for", "lane / 8 % 4;\n  for", decodes),
    "one token too many committed": Bug(DECODE, "if (t + 1 == at.commit)", "if (t == at.commit)", speculates),
    "one token too few committed": Bug(DECODE, "if (t + 1 == at.commit)", "if (t + 2 == at.commit)", speculates),
    "drafts committed": Bug(DECODE, "commit = min(in.n_commit[slot], n);", "commit = n;", speculates),
    "scan without its barrier": Bug(SCAN, "<0>();\n      __syncthreads();", "<0>();", prefills),
    "scan without waiting for copies": Bug(SCAN, "wait_copies<0>();", "", prefills),
    "merge without its barrier": Bug(CHUNK, "        __syncthreads();\n      }", "      }", prefills),
    "keys overwritten too early": Bug(CHUNK, "__syncthreads();  // the keys", "// the keys", prefills),
    "decay of the wrong token": Bug(CHUNK, "g[row].over(g[j])", "g[row].over(g[min(j + 1, C - 1)])", prefills),
    "state one input late": Bug(CONV, "commit - 3 + i", "commit - 2 + i", convolves),
    "conv keeps drafts": Bug(CONV, "min(in.n_commit[slot], in.tokens)", "in.tokens", convolution_speculates),
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the kernels that can be patched."""
    plugins = shim.FOLDER.parent
    for path in [*plugins.glob("*/*.cu"), *plugins.glob("*/*.cuh"), *plugins.glob("*/*.hpp")]:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    return tmp_path


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_is_caught(sources: Path, bug: Bug) -> None:
    source = sources / bug.source
    text = source.read_text()
    assert text.count(bug.right) == 1, "the line to break is not where it was"
    source.write_text(text.replace(bug.right, bug.wrong))
    assert not _passes(bug.passes, source.parent)


def _passes(check: Callable[[Path], bool], op: Path) -> bool:
    try:
        return check(op)
    except (BuildError, AssertionError):  # a deadlock or a divergent call; an unwritten output
        return False


@pytest.mark.parametrize(
    "check, source", [(decodes, DECODE), (speculates, DECODE), (prefills, SCAN), (convolves, CONV)]
)
def test_an_unbroken_copy_passes(sources: Path, check: Callable[[Path], bool], source: str) -> None:
    assert check((sources / source).parent)
