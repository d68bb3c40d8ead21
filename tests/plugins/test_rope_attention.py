"""Attention from the projections on, in one launch: its parts to the bit, float64, and who adds and who appends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_gated_attention as attention
import test_qk_norm_rope as rope

from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.gated_attention import inputs, launch
from deltart.plugins.gated_attention import rope as joined
from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.gated_attention.op import ROPE_GATED_ATTENTION
from deltart.plugins.gated_attention.rope import Turn
from deltart.plugins.qk_norm_rope import inputs as rope_inputs
from deltart.plugins.qk_norm_rope import launch as rope_launch
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.gdr_on_shim import addresses
from support.planted import copy_kernels, is_caught, passes_check

FOLDER = attention.FOLDER
CACHES = ("k_cache", "v_cache")
SMALL = Shape(heads=6, kv_heads=1, capacity=256)
TURN = Turn()
Arrays = dict[str, np.ndarray]


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "rope.cu")


def rope_shape(shape: Shape, turn: Turn) -> rope_inputs.Shape:
    return rope_inputs.Shape(
        shape.slots, shape.tokens, shape.heads, shape.kv_heads, shape.head_dim, turn.rotary_dim,
        parameter_dtype=turn.weight_dtype, epsilon=turn.epsilon,
    )  # fmt: skip


def made(shape: Shape, turn: Turn, past_len: list[int], n_tokens: list[int] | None = None, seed: int = 0) -> Arrays:
    """Inputs of a call, NaN where no token or no key is."""
    counts = None if n_tokens is None else np.array(n_tokens)
    given = inputs.make(shape, seed, np.array(past_len), counts)
    given |= rope_inputs.make(rope_shape(shape, turn), seed)
    dead = np.arange(shape.tokens)[None] >= given["n_tokens"][:, None]
    for name in ("q_gate", "k", "cos", "sin"):
        given[name][dead] = np.nan
    given["arrived"] = np.zeros(shape.slots * shape.kv_heads * 2, np.int32)  # as many as a larger call takes
    return {name: array for name, array in given.items() if name not in ("q", "gate")}


def run(kernels: CpuModule, by: launch.Plan, turn: Turn, given: Arrays, order: int = FORWARD) -> Arrays:
    """One call; returns copies of what it wrote."""
    found = inputs.outputs(by.shape) | {name: given[name].copy() for name in (*CACHES, "arrived")}
    work = {"workspace": np.full(by.workspace_bytes(), 0xFF, np.uint8)}
    kernels.run(joined.attention(by, turn, addresses(given, found, work)), order)
    return found


def turned(by: launch.Plan, turn: Turn, given: Arrays) -> Arrays:
    """The call's inputs behind the norms and the rotation, as their own kernel makes them."""
    sizes = rope_shape(by.shape, turn)
    made = rope_inputs.outputs(sizes)
    rope.module().run([rope_launch.rope(sizes, addresses(given, made))])
    return given | {"q": made["q"], "k": made["k_out"], "gate": made["gate"]}


def same(found: Arrays, right: Arrays) -> bool:
    return all(found[name].tobytes() == right[name].tobytes() for name in ("o", *CACHES))


def check(
    kernels: CpuModule,
    shape: Shape,
    past_len: list[int],
    n_tokens: list[int] | None = None,
    splits: int = 0,
    turn: Turn = TURN,
    orders: tuple[int, ...] = (FORWARD, REVERSE),
) -> bool:
    """Whether it is its parts to the bit, near float64, and leaves its counts as they were."""
    by = launch.plan(shape, splits)
    given = made(shape, turn, past_len, n_tokens)
    apart = turned(by, turn, given)
    right = attention.run(attention.module(), by, apart)
    o, cache = attention.errors(by, apart, right)
    assert o <= TOLERANCE["bf16"] and cache <= 1e-12, "the parts are wrong themselves"
    for order in orders:
        found = run(kernels, by, turn, given, order)
        if found["arrived"].any() or not same(found, right):
            return False
    return True


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("past", [0, 31, 62, 64, 200])
def test_lengths(tokens: int, past: int) -> None:
    turn = Turn(weight_dtype="f32", epsilon=0.1)
    assert check(module(), replace(SMALL, tokens=tokens), [past], turn=turn)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_long(tokens: int) -> None:
    """Every part has keys, and more than a round of sums fits in shared memory."""
    assert check(module(), replace(SMALL, tokens=tokens, capacity=8400), [8300], orders=(FORWARD,))


@pytest.mark.parametrize("cache_dtype", ["bf16", "e4m3"])
@pytest.mark.parametrize("page_size", [0, 16, 48])
@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_ragged_slots(tokens: int, page_size: int, cache_dtype: str) -> None:
    shape = Shape(4, tokens, heads=12, kv_heads=2, capacity=300, cache_dtype=cache_dtype, page_size=page_size)
    for splits in (1, 3, 0):
        assert check(module(), shape, [0, 100, 257, 31], [tokens, 0, tokens - 1, 1], splits)


@pytest.mark.parametrize("head_dim, rotary", [(64, 16), (128, 128), (256, 64)])
@pytest.mark.parametrize("heads, kv_heads", [(24, 4), (4, 2), (3, 3), (16, 1)])
def test_head_shapes(head_dim: int, rotary: int, heads: int, kv_heads: int) -> None:
    for cache_dtype in ("bf16", "e4m3"):
        for tokens in (1, 4):
            shape = Shape(1, tokens, heads, kv_heads, head_dim, 128, cache_dtype)
            assert check(module(), shape, [70], turn=Turn(rotary), orders=(FORWARD,))


def test_most_parts() -> None:
    """128 of them with keys, 16 rows: the most sums that one block adds, at the least shared memory."""
    shape = Shape(1, 1, 16, 1, 64, 8300)
    assert launch.plan(shape).splits == launch.MAX_SPLITS
    assert check(module(), shape, [8250], turn=Turn(16), orders=(FORWARD,))


def test_near_float64() -> None:
    shape, turn = replace(SMALL, slots=2, tokens=2), Turn(weight_dtype="f32", epsilon=1e-5)
    given = made(shape, turn, [40, 130])
    found = run(module(), launch.plan(shape), turn, given)
    tensors = ROPE_GATED_ATTENTION.inputs
    wide = (given[t.name] if t.dtype == "I32" else given[t.name].astype(np.float64) for t in tensors)
    wide = (np.nan_to_num(array) for array in wide)
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    o, k_cache, v_cache = ROPE_GATED_ATTENTION.reference(*wide, *heads, turn.epsilon)
    assert relative_rms(found["o"], o) <= TOLERANCE["bf16"]
    for name, right in (("k_cache", k_cache), ("v_cache", v_cache)):
        assert relative_rms(np.nan_to_num(found[name].astype(np.float64)), right) <= TOLERANCE["bf16"]


def test_calls_one_after_another() -> None:
    """Counts serve any number of calls, of one token and several, of slots that are idle now and then."""
    turn, state = Turn(), made(replace(SMALL, slots=2, capacity=128), Turn(), [0, 60])
    past = np.array([0, 60], np.int32)
    for step, counts in enumerate([(1, 1), (0, 1), (2, 1), (5, 3), (1, 0), (1, 1), (1, 1)]):
        shape = replace(SMALL, slots=2, tokens=max(counts), capacity=128)
        given = made(shape, turn, past.tolist(), list(counts), step)
        given |= {name: state[name] for name in (*CACHES, "arrived")}
        by = launch.plan(shape)
        state = run(module(), by, turn, given)
        assert same(state, attention.run(attention.module(), by, turned(by, turn, given)))
        past += np.array(counts, np.int32)


def test_who_combines() -> None:
    many = Shape(tokens=1, heads=16, kv_heads=2)  # 1 MiB of sums
    for shape, launches in ((Shape(tokens=1), 1), (Shape(tokens=2), 2), (Shape(tokens=8), 2), (many, 2)):
        by, at = launch.plan(shape), dict.fromkeys(made_names(), 1)
        assert len(joined.attention(by, Turn(), at)) == launches
    with pytest.raises(BuildError, match="9 tokens"):
        joined.attention(launch.plan(Shape(tokens=9)), Turn(), {})
    with pytest.raises(BuildError, match="40 rotary"):
        joined.attention(launch.plan(Shape()), Turn(40), {})


def made_names() -> list[str]:
    return [*(tensor.name for tensor in ROPE_GATED_ATTENTION.inputs), "o", "workspace"]


def passes(op: Path) -> bool:
    """Small calls that a planted bug spoils: of one token and several, idle and full slots, parts in many runs."""
    kernels, turn = module(op), Turn(32, "f32", 0.1)
    shapes = [
        (Shape(3, 2, 12, 2, 64, 700), [0, 640, 130], [2, 1, 0], 0),
        (Shape(3, 2, 12, 2, 64, 700), [63, 448, 3], [2, 2, 1], 9),
        (Shape(2, 4, 12, 2, 64, 200), [31, 150], [4, 2], 0),
        (Shape(2, 2, 3, 1, 64, 200, "e4m3", 16), [31, 150], [1, 2], 3),
    ]
    return all(check(kernels, shape, past, n, splits, turn) for shape, past, n, splits in shapes)


LAST, TILE, ROPE, TURNS = "last.cuh", "tile.cuh", "rope.cu", "../qk_norm_rope/turn.cuh"
BUGS = {
    "added before all parts are there": (ROPE, "block.parts(), block", "block.parts() - 1, block"),
    "counts left as they are": ("../common/last_block.cuh", "if (last) *arrived = 0;", ""),
    "blocks without keys counted": (TILE, "return blockIdx.x == 0;", "return true;"),
    "an idle slot left as it was": (TILE, "return blockIdx.x == 0;", "return false;"),
    "a key not turned": (TILE,
                         "      heads.turn.apply(heads.k_weight", "      if (false) heads.turn.apply(heads.k_weight"),
    "keys normed as queries": (TILE, "heads.turn.apply(heads.k_weight", "heads.turn.apply(heads.q_weight"),
    "queries normed as keys": (TILE, "heads.turn.apply(heads.q_weight", "heads.turn.apply(heads.k_weight"),
    "a query turned by another token": (TILE, "in.tokens + token[i], D", "in.tokens, D"),
    "a key turned by another token": (TILE, "in.tokens + token, D, x);\n      if (column >= D)",
                                      "in.tokens, D, x);\n      if (column >= D)"),
    "new keys cached raw": (TILE, "cached(key.at, in.k_cache", "cached(in.k + from, in.k_cache"),
    "keys of one tile appended": (TILE, "const bool keep = token >= first_token;", "const bool keep = index == 0;"),
    "values not appended": (TILE, "      if (keep) cached(in.v", "      if (false) cached(in.v"),
    "values scaled as keys": (TILE, "in.v_cache + to, keep, inverse[1]", "in.v_cache + to, keep, inverse[0]"),
    "new keys taken raw": (TILE, "if (Heads::kRaw && !which && is && !old) continue;",
                           "if (Heads::kRaw && !which && is && !old && index) continue;"),
    "the gate of the query": (TILE, "Heads::kRaw ? 2 * at : at", "at"),
    "gates not waited for": (LAST, "      wait_copies<1>();\n", ""),
    "sums not waited for": (LAST, "wait_copies<1>()", "wait_copies<2>()"),
    "weights of the row before": (LAST, "fmaf(weight[at + i], x[j]", "fmaf(weight[max(at + i - parts, 0)], x[j]"),
    "weights read before they are there": (LAST, "      wait_copies<1>();\n      __syncthreads();\n",
                                           "      wait_copies<1>();\n"),
    "the last run forgotten": (LAST, "whole[j] += sum[j], sum", "whole[j] += until < live ? sum[j] : 0.0f, sum"),
    "drafts without zeros": (LAST, "e < (all - rows)", "e < 0 * (all - rows)"),
    "columns of the thread before": (LAST, "+ at - first) * D + column;", "+ at - first) * D;"),
    "the angle of the next pair": (TURNS, "row * pairs + at % pairs", "row * pairs"),
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
