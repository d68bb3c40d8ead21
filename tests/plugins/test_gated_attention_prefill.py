"""Attention of many tokens by warpgroup products, against float64 on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_gated_attention as attention

from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.gated_attention import inputs, launch, prefill
from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.tolerance import TOLERANCE
from support.gdr_on_shim import addresses
from support.planted import copy_kernels, is_caught, passes_check

FOLDER = attention.FOLDER
SMALL = Shape(1, 30, heads=6, kv_heads=1, capacity=256)
Arrays = dict[str, np.ndarray]


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "prefill.cu")


def run(kernels: CpuModule, shape: Shape, given: Arrays, order: int = FORWARD) -> Arrays:
    """One call; returns copies of what it wrote."""
    found = inputs.outputs(shape) | {name: given[name].copy() for name in ("k_cache", "v_cache")}
    kernels.run([prefill.attention(shape, addresses(given, found))], order)
    return found


def check(
    kernels: CpuModule, shape: Shape, past_len: list[int], n_tokens: list[int] | None = None, order: int = FORWARD
) -> bool:
    counts = None if n_tokens is None else np.array(n_tokens)
    given = inputs.make(shape, 0, np.array(past_len), counts)
    o, cache = attention.errors(launch.plan(shape, 1), given, run(kernels, shape, given, order))
    return o <= TOLERANCE["bf16"] and cache <= 1e-12


@pytest.mark.parametrize("past", [0, 49, 50, 131])
def test_lengths(past: int) -> None:
    """Keys end at a tile's border and beside it; the second block's rows begin within a token."""
    for order in (FORWARD, REVERSE):
        assert check(module(), SMALL, [past], order=order)


@pytest.mark.parametrize("page_size", [0, 16, 48])
def test_ragged_slots(page_size: int) -> None:
    shape = Shape(4, 45, heads=12, kv_heads=2, capacity=300, page_size=page_size)
    assert check(module(), shape, [0, 100, 254, 31], [45, 0, 23, 1])


@pytest.mark.parametrize("heads, kv_heads, tokens", [(4, 2, 70), (3, 3, 130), (16, 1, 9), (7, 1, 19)])
def test_heads_and_borders(heads: int, kv_heads: int, tokens: int) -> None:
    """Rows of a block end within a token, or with one."""
    for past in (0, 77):
        assert check(module(), Shape(1, tokens, heads, kv_heads, capacity=256), [past], order=REVERSE)


def test_repeats_to_the_bit_in_any_order_of_the_warps() -> None:
    given = inputs.make(SMALL, 1, np.array([140]))
    first, second = (run(module(), SMALL, given, order) for order in (FORWARD, REVERSE))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_prefill_in_two_calls_is_prefill_in_one() -> None:
    given = inputs.make(SMALL, 0, np.array([20]))
    whole = run(module(), SMALL, given)["o"]
    parts, state = [], given
    for first, count in ((0, 13), (13, 17)):
        new = {name: np.ascontiguousarray(given[name][:, first : first + count]) for name in ("q", "k", "v", "gate")}
        state = state | new | {"past_len": np.array([20 + first], np.int32), "n_tokens": np.array([count], np.int32)}
        found = run(module(), replace(SMALL, tokens=count), state)
        state |= {name: found[name] for name in ("k_cache", "v_cache")}
        parts.append(found["o"])
    assert np.concatenate(parts, 1).tobytes() == whole.tobytes()


def test_who_is_served() -> None:
    assert prefill.serves(Shape(tokens=352), 90) and not prefill.serves(Shape(tokens=341), 90)
    for capability in (80, 89, 100, 120):
        assert not prefill.serves(Shape(tokens=4096), capability)
    for other in (Shape(tokens=4096, cache_dtype="e4m3"), Shape(tokens=4096, head_dim=128), Shape(64, 8)):
        assert not prefill.serves(other, 90)
    with pytest.raises(BuildError, match="another head"):
        prefill.attention(Shape(tokens=512, cache_dtype="e4m3"), {})


def passes(op: Path) -> bool:
    kernels = module(op)
    calls: list[tuple[Shape, list[int], list[int] | None]] = [
        (Shape(2, 45, 6, 1, capacity=300), [0, 200], [45, 9]),
        (Shape(1, 24, 4, 2, capacity=64, page_size=16), [30], None),
        (Shape(1, 100, 2, 2, capacity=100), [0], None),
    ]
    return all(check(kernels, *call, order) for order in (FORWARD, REVERSE) for call in calls)


PREFILL, HOPPER = "prefill.cu", "../common/hopper_bf16.cuh"
BUGS = {
    "tiles overwritten too early": (PREFILL, "      wait(&memory.empty[step % kRing], step / kRing % 2 ^ 1);\n", ""),
    "tiles read before they are there": (PREFILL, "    wait(&memory.full[step % kRing], step / kRing % 2);\n", ""),
    "copies not waited for": (PREFILL, "      wait_copies<kLag>();\n", ""),
    "copies waited for too late": (PREFILL, "wait_copies<kLag>()", "wait_copies<kLag + 1>()"),
    "the last copies not waited for": (PREFILL, "    wait_copies<0>();\n    for (int late", "    for (int late"),
    "tiles out of the products' sight": (PREFILL, "    fence_async();\n    arrive(", "    arrive("),
    "all warps copy one row": (PREFILL, "warp * apart + lane * 8;", "lane * 8;"),
    "new rows of the next head": (PREFILL, "first >= rows.past ? in.kv_heads * kHead : kHead", "kHead"),
    "keys given back twice": (PREFILL, "    release(2 * tile + 1);", "    release(2 * tile);"),
    "values of the step before": (PREFILL, "describe_columns(await(2 * tile + 1),",
                                  "describe_columns(await(2 * tile),"),
    "sums not fenced": (PREFILL, "    fence_sums(sum);\n", ""),
    "probabilities before the scores are there": (PREFILL, "    wait_sums(score);\n", ""),
    "one key too many": (PREFILL, "rows.past + token + 1 : 0;\n    }\n    least",
                         "rows.past + token + 2 : 0;\n    }\n    least"),
    "masks too rare": (PREFILL, "if (first + kTileKeys > least)", "if (first > least)"),
    "old sums not rescaled": (PREFILL, "sum[i] *= old, sum[i + 1] *= old;", "sum[i] *= old;"),
    "old counts not rescaled": (PREFILL, "fmaf(total[half], old, added)", "total[half] + added"),
    "rows of the other warpgroup": (PREFILL, "describe(memory.q[0] + group * 64 * kRowBytes)", "describe(memory.q[0])"),
    "a chunk of queries again": (PREFILL, "q + (d / 4 * kRows * kRowBytes", "q + (d / 8 * kRows * kRowBytes"),
    "values of other keys": (PREFILL, "v + s * 16 * kRowBytes / 16", "v + s * 8 * kRowBytes / 16"),
    "columns of another chunk": (HOPPER, "uint64_t(leading >> 4) << 16", "uint64_t(leading >> 5) << 16"),
    "another swizzle": ("../common/tensor_core.cuh", "(piece ^ row % 8)", "(piece ^ row % 4)"),
    "the head of the row before": (PREFILL, "+ (first + r) % group) * kHead",
                                   "+ max((first + r) % group - 1, 0)) * kHead"),
    "padded tokens appended": (PREFILL, "token < min(to, rows.live)", "token < min(to, in.tokens)"),
    "a token between blocks not appended": (PREFILL, "(rows.first + kRows + rows.group - 1) / rows.group;",
                                            "(rows.first + kRows) / rows.group;"),
    "keys appended as values": (PREFILL, "const uint4*>(in.v + old)", "const uint4*>(in.k + old)"),
    "new keys from the cache": (PREFILL, "position < rows.past ? cache", "position <= rows.past ? cache"),
    "padding rows weighed": (PREFILL, "seen[half] ? 1.0f / total[half] : 0.0f", "1.0f / total[half]"),
    "the last keys forgotten": (PREFILL, "live - 1) + 1 : 0)", "live - 1) : 0)"),
    "half of the gates again": (PREFILL, "rows.in.gate + at + side * 128 + c", "rows.in.gate + at + c"),
    "o read before it is written": (PREFILL, "      __syncwarp();\n      for (int r = first",
                                    "      for (int r = first"),
}  # fmt: skip


@pytest.fixture
def op(tmp_path: Path) -> Path:
    """The op's folder in a copy of the kernels that can be patched."""
    copy_kernels(tmp_path)
    return tmp_path / "gated_attention"


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(op: Path, bug: str) -> None:
    assert is_caught(op, *BUGS[bug], passes)


def test_an_unbroken_copy_passes(op: Path) -> None:
    assert passes_check(passes, op)


def test_the_lines_to_break_are_there() -> None:
    assert {(FOLDER / name).read_text().count(right) for name, right, _ in BUGS.values()} == {1}
