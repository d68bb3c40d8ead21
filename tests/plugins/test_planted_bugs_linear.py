"""Bugs planted in the linear, attention, norm and sampler kernels are caught by their tests' checks."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_fp8_linear as linear
import test_gated_attention as attention
import test_gated_rms_norm as norm
import test_projections as projections
import test_qk_norm_rope as rope
import test_residual_rms_norm as residual
import test_sampler as sampler

from deltart.plugins.cpu_shim.runner import REVERSE
from deltart.plugins.fp8_linear.inputs import Shape as LinearShape
from deltart.plugins.gated_attention.inputs import Shape as AttentionShape
from deltart.plugins.gated_rms_norm.inputs import Shape as NormShape
from deltart.plugins.qk_norm_rope.inputs import Shape as RopeShape
from deltart.plugins.residual_rms_norm.inputs import Shape as ResidualShape
from support.planted import is_caught

PLUGINS = linear.FOLDER.parent


def multiplies(op: Path) -> bool:
    kernels = linear.module(op)
    return all(linear.check(kernels, LinearShape(tokens=t, n=300, k=1040, dtype="f32")) for t in (1, 20))


def goes_round(op: Path) -> bool:
    """More blocks of K for a warp than its ring has stages."""
    return linear.check(linear.module(op), LinearShape(n=40, k=6160, dtype="f32"))


def goes_round_ahead(op: Path) -> bool:
    """More blocks for a warp than it has scales at once, its x loaded ahead."""
    return linear.goes_on(linear.module(op), "bf16")


def gates(op: Path) -> bool:
    return linear.gates(linear.module(op), LinearShape(tokens=3, n=48, k=400, dtype="f32"))


def projects(op: Path) -> bool:
    return projections.check(projections.module(op), LinearShape(tokens=3, k=400, dtype="f32"), (272, 40), (48, 47))


def attends(op: Path, splits: int = 1, cache: str = "bf16", pages: int = 0) -> bool:
    shape = AttentionShape(2, 3, heads=12, kv_heads=2, capacity=200, cache_dtype=cache, page_size=pages)
    return all(attention.check(attention.module(op), shape, [0, 150], [3, 2], splits, order) for order in (0, REVERSE))


def norms(op: Path) -> bool:
    return norm.check(norm.module(op), NormShape(tokens=2, heads=3, dtype="f32", epsilon=0.1))


def adds_and_norms(op: Path) -> bool:
    kernels = residual.module(op)
    return all(residual.check(kernels, ResidualShape(2, 1000, "f32"), order) for order in (0, REVERSE))


def turns(op: Path) -> bool:
    return rope.check(rope.module(op), RopeShape(2, 3, 3, 2, 64, 32, "f32", "f32", 0.1))


def samples(op: Path, case: str) -> bool:
    return all(
        sampler.agrees(sampler.module(op), sampler.CASES[case], 3000, masked, ties)
        for masked, ties in ((False, False), (True, False), (False, True))
    )


def draws_again(op: Path) -> bool:
    return sampler.feeds(sampler.module(op))


LINEAR, ATTENTION, SAMPLER, NORM = "fp8_linear", "gated_attention", "sampler", "residual_rms_norm"
KERNEL, DRAW, ROW, TILE, TURN = "kernel.cu", "draw.cuh", "row.cuh", "tile.cuh", "turn.cuh"
BUGS: dict[str, tuple[str, str, str, str, Callable[[Path], bool]]] = {
    "sums added before they are there": (LINEAR, "decode.cuh", "  __syncthreads();\n", "", multiplies),
    "scale of the block before": (
        LINEAR,
        "../common/linear_tile.cuh",
        "W.scale_of(row[0], block) : 0.0f",
        "W.scale_of(row[0], max(block - 1, 0)) : 0.0f",
        multiplies,
    ),
    "weights read before they are there": (
        LINEAR,
        "../common/linear_tile.cuh",
        "      wait_copies<kStages - 2>();\n",
        "",
        multiplies,
    ),
    "weights waited for too late": (
        LINEAR,
        "../common/linear_tile.cuh",
        "wait_copies<kStages - 2>()",
        "wait_copies<kStages - 1>()",
        multiplies,
    ),
    "weights of another stage": (
        LINEAR,
        "../common/linear_tile.cuh",
        "const unsigned char* stage = stage_of(turn);",
        "const unsigned char* stage = stage_of(turn + 1);",
        multiplies,
    ),
    "x of the block before": (
        LINEAR,
        "../common/linear_tile.cuh",
        "ahead += step * kBlock",
        "ahead += (step - 1) * kBlock",
        goes_round_ahead,
    ),
    "the first scales for all groups of blocks": (
        LINEAR,
        "../common/linear_tile.cuh",
        "scales = later, later = scale_of(first + (turn + 32) * step, step, blocks)",
        "scales = later",
        goes_round_ahead,
    ),
    "a stage filled that is still to be read": (
        LINEAR,
        "../common/linear_tile.cuh",
        "fetch(turn + kStages - 1, step)",
        "fetch(turn + kStages, step)",
        goes_round,
    ),
    "a split of K left out": (
        LINEAR,
        "decode.cuh",
        "int split = 0; split < splits",
        "int split = 0; split < splits - 1",
        multiplies,
    ),
    "subnormals flushed": (
        LINEAR,
        "../common/fp8.cuh",
        "(a & 0x7f007f00u) >> 4)",
        "((a & 0x7800) ? (a & 0x7f007f00u) >> 4 : (a & 0x7f000000u) >> 4))",
        multiplies,
    ),
    "up with the scales of gate": (LINEAR, "../common/linear_tile.cuh", ", scale = other.scale", "", gates),
    "up and gate exchanged": (
        LINEAR,
        "decode.cuh",
        "warp % tiles >= in.row_groups",
        "warp % tiles < in.row_groups",
        gates,
    ),
    "blocks of one weight not counted off": (LINEAR, "decode.cuh", "if (!found) block -= blocks;", "", projects),
    "a block too few for a weight": (LINEAR, "decode.cuh", "+ rows - 1) / rows", ") / rows", projects),
    "one key too many": (ATTENTION, TILE, "+ 1) * mine, seen)", "+ 1) * mine, seen + 1)", attends),
    "one key too few": (
        ATTENTION,
        TILE,
        "+ 1) * mine, seen)",
        "+ 1) * mine, max(seen - 1, 1))",
        attends,
    ),
    "scores read before they are there": (
        ATTENTION,
        TILE,
        "      __syncthreads();\n      accumulate",
        "      accumulate",
        attends,
    ),
    "keys overwritten too early": (
        ATTENTION,
        TILE,
        "      wait_copies<0>();\n      __syncthreads();\n",
        "      wait_copies<0>();\n",
        attends,
    ),
    "old sums not rescaled": (ATTENTION, TILE, "sum[m][n][2 * half] *= old, ", "", attends),
    "padded tokens appended": (
        ATTENTION,
        TILE,
        "min(per_tile, live - first_token)",
        "min(per_tile, in.tokens - first_token)",
        attends,
    ),
    "splits weighed alike": (
        ATTENTION,
        "combine.cuh",
        "exp2f(stats[2 * i] - most)",
        "1.0f",
        functools.partial(attends, splits=4),
    ),
    "V scaled like K": (
        ATTENTION,
        TILE,
        "(which ? in.v_scale : in.k_scale)",
        "in.k_scale",
        functools.partial(attends, cache="e4m3"),
    ),
    "the next page": (
        ATTENTION,
        "attention.cuh",
        "position % page_size :",
        "(position + 1) % page_size :",
        functools.partial(attends, pages=16),
    ),
    "epsilon outside the root": (
        "gated_rms_norm",
        "norm.cuh",
        "rsqrtf(warp_sum(sum) / in.D + in.epsilon)",
        "(rsqrtf(warp_sum(sum) / in.D) + in.epsilon)",
        norms,
    ),
    "gate without its factor": ("gated_rms_norm", "norm.cuh", "z[i][j] * sigmoid_for<Act>", "sigmoid_for<Act>", norms),
    "turned the other way": ("qk_norm_rope", TURN, "(second ? other : -other)", "(second ? -other : other)", turns),
    "turned against the neighbour": ("qk_norm_rope", TURN, "second ? lane - apart", "second ? lane - 1", turns),
    "angles of the token before": (
        "qk_norm_rope",
        TURN,
        "row * pairs",
        "(row ? row - 1 : 0) * pairs",
        turns,
    ),
    "keys with the weight of queries": (
        "qk_norm_rope",
        KERNEL,
        "is_q ? in.q_weight : in.k_weight",
        "in.q_weight",
        turns,
    ),
    "the gate turned too": ("qk_norm_rope", KERNEL, "  load(from + in.D + at, x);\n", "", turns),
    "squares added before they are there": (NORM, "norm.cuh", "  __syncthreads();\n", "", adds_and_norms),
    "weight without its one": (NORM, "norm.cuh", "(1.0f + w[j])", "w[j]", adds_and_norms),
    "residual not kept": (NORM, "norm.cuh", "raw_h[part][i].put(in.sum + base + at);", "", adds_and_norms),
    "top-k one short": (
        SAMPLER,
        DRAW,
        "select<true>(in.top_k[row], above)",
        "select<true>(in.top_k[row] - 1, above)",
        functools.partial(samples, case="top-k"),
    ),
    "a token too many": (
        SAMPLER,
        DRAW,
        "above + bins[bin] < target",
        "above + bins[bin] <= target",
        functools.partial(samples, case="top-k"),
    ),
    "all of the ties": (
        SAMPLER,
        DRAW,
        "tied_before + rank > ties",
        "false",
        functools.partial(samples, case="top-p"),
    ),
    "penalty for prompt tokens": (
        SAMPLER,
        ROW,
        "count & ~kPromptBit",
        "count",
        functools.partial(samples, case="penalties"),
    ),
    "mask of the neighbour": (
        SAMPLER,
        ROW,
        ">> id % 32 & 1",
        ">> (id + 1) % 32 & 1",
        functools.partial(samples, case="plain"),
    ),
    "nucleus of the list alone": (
        SAMPLER,
        DRAW,
        "counts_tokens() ? nucleus_of_kept() : work.rest",
        "nucleus_of_kept()",
        functools.partial(samples, case="hot"),
    ),
    "all lists from the start": (
        SAMPLER,
        KERNEL,
        " + row.work.offset[blockIdx.x]",
        "",
        functools.partial(samples, case="top-k"),
    ),
    "the weight of earlier blocks not taken off": (
        SAMPLER,
        KERNEL,
        "++b) rest -= weight[b];",
        "++b) rest -= 0;",
        functools.partial(samples, case="plain"),
    ),
    "blocks counted on from the last call": (SAMPLER, ROW, "last && threadIdx.x == 0", "last && false", draws_again),
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the kernels that can be patched."""
    for path in [*PLUGINS.glob("*/*.cu"), *PLUGINS.glob("*/*.cuh"), *PLUGINS.glob("*/*.hpp")]:
        if path.parent.name != "build":
            (tmp_path / path.parent.name).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / path.parent.name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(sources: Path, bug: str) -> None:
    op, name, right, wrong, passes = BUGS[bug]
    assert is_caught(sources / op, name, right, wrong, passes)


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted({bug[0] for bug in BUGS.values()}))
def test_an_unbroken_copy_passes(sources: Path, op: str) -> None:
    assert all(passes(sources / op) for folder, *_, passes in BUGS.values() if folder == op)


def test_the_lines_to_break_are_there() -> None:
    counts = {bug: (PLUGINS / op / name).read_text().count(right) for bug, (op, name, right, *_) in BUGS.items()}
    assert set(counts.values()) == {1}, counts
    assert np.all([wrong != right for *_, right, wrong, _ in BUGS.values()])
