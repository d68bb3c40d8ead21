"""The gated attention against its float64 reference, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import gated_attention
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.gated_attention import inputs, launch
from deltart.plugins.gated_attention.inputs import Shape
from deltart.plugins.gated_attention.reference import gated_attention as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(gated_attention.__file__).parent
Arrays = dict[str, np.ndarray]


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def run(kernels: CpuModule, by: launch.Plan, given: Arrays, order: int = FORWARD) -> Arrays:
    """One call; returns copies of what it wrote: o, k_cache, v_cache."""
    found = inputs.outputs(by.shape) | {name: given[name].copy() for name in ("k_cache", "v_cache")}
    work = {"workspace": np.full(by.workspace_bytes(), 0xFF, np.uint8)}
    kernels.run(
        launch.attention(by, {name: array.ctypes.data for name, array in (given | found | work).items()}), order
    )
    return found


def wide(shape: Shape, given: Arrays) -> list[np.ndarray]:
    """The operands of the reference, as the kernel sees them: float64, pages gathered, E4M3 times its scale; the new
    rows of an E4M3 cache are rounded to it before they are used, so a token sees what later steps will see."""
    new, caches = [], []
    for name in ("k", "v"):
        rows, cache = given[name].astype(np.float64), given[f"{name}_cache"]
        if shape.page_size:
            cache = inputs.gathered(cache, given["page_table"], shape.capacity)
        if shape.cache_dtype == "e4m3":
            scale = given[f"{name}_scale"]
            split = rows.reshape(*rows.shape[:2], shape.kv_heads, -1).transpose(0, 2, 1, 3)
            rounded = inputs.quantize(split, scale).astype(np.float64) * scale[:, None, None]
            rows = rounded.transpose(0, 2, 1, 3).reshape(rows.shape)
            cache = cache.astype(np.float64) * scale[:, None, None]
        new.append(rows)
        caches.append(cache.astype(np.float64))
    gate = np.nan_to_num(given["gate"].astype(np.float64))
    return [given["q"].astype(np.float64), *new, gate, *caches, given["past_len"], given["n_tokens"]]


def errors(by: launch.Plan, given: Arrays, found: Arrays) -> tuple[float, float]:
    """Relative RMS of o, and of the rows of the caches that hold keys."""
    shape = by.shape
    o, *expected = reference(*wide(shape, given), shape.heads, shape.kv_heads, shape.head_dim)
    caches = []
    for name, right in zip(("k", "v"), expected, strict=True):
        cache = found[f"{name}_cache"]
        if shape.page_size:
            cache = inputs.gathered(cache, given["page_table"], shape.capacity)
        cache = cache.astype(np.float64)
        if shape.cache_dtype == "e4m3":
            cache = cache * given[f"{name}_scale"][:, None, None]
        used = np.arange(shape.capacity)[None] < (given["past_len"] + given["n_tokens"])[:, None]
        caches.append(relative_rms(cache.transpose(0, 2, 1, 3)[used], right.transpose(0, 2, 1, 3)[used]))
        assert np.isnan(cache.transpose(0, 2, 1, 3)[~used]).all(), "a row without a key was written"
    return relative_rms(found["o"], o), max(caches)


def check(
    kernels: CpuModule,
    shape: Shape,
    past_len: list[int],
    n_tokens: list[int] | None = None,
    splits: int = 0,
    order: int = FORWARD,
) -> bool:
    by = launch.plan(shape, splits)
    given = inputs.make(shape, 0, np.array(past_len), None if n_tokens is None else np.array(n_tokens))
    o, cache = errors(by, given, run(kernels, by, given, order))
    return o <= TOLERANCE["bf16"] and cache <= 1e-12


SMALL = Shape(heads=6, kv_heads=1, capacity=256)


@pytest.mark.parametrize("tokens", range(1, 9))
@pytest.mark.parametrize("past", [0, 62, 63, 64])
def test_decode_lengths(tokens: int, past: int) -> None:
    assert check(module(), replace(SMALL, tokens=tokens), [past])


@pytest.mark.parametrize("tokens", [1, 8])
def test_decode_4097(tokens: int) -> None:
    assert check(module(), replace(SMALL, tokens=tokens, capacity=4104), [4097 - 1])


@pytest.mark.slow
@pytest.mark.parametrize("tokens", range(1, 9))
@pytest.mark.parametrize("past", [4096, 32768])
def test_decode_long(tokens: int, past: int) -> None:
    assert check(module(), replace(SMALL, tokens=tokens, capacity=past + 8), [past])


@pytest.mark.parametrize("cache_dtype", ["bf16", "e4m3"])
@pytest.mark.parametrize("page_size", [0, 16, 48])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_ragged_slots(tokens: int, page_size: int, cache_dtype: str) -> None:
    shape = Shape(4, tokens, heads=12, kv_heads=2, capacity=300, cache_dtype=cache_dtype, page_size=page_size)
    for splits in (1, 3):
        assert check(module(), shape, [0, 100, 257, 31], [tokens, 0, tokens - 1, 1], splits)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("heads, kv_heads", [(24, 4), (4, 2), (3, 3), (16, 1)])
def test_head_shapes(head_dim: int, heads: int, kv_heads: int) -> None:
    for cache_dtype in ("bf16", "e4m3"):
        assert check(module(), Shape(1, 4, heads, kv_heads, head_dim, 128, cache_dtype), [70])


@pytest.mark.parametrize("tokens, past", [(65, 0), (100, 33), (63, 64)])
def test_prefill(tokens: int, past: int) -> None:
    shape = Shape(2, tokens, heads=6, kv_heads=1, capacity=256)
    for splits in (1, 2):
        assert check(module(), shape, [past, 5], [tokens, tokens - 17], splits, REVERSE)


def test_prefill_in_two_calls_is_prefill_in_one() -> None:
    shape = Shape(1, 90, heads=6, kv_heads=1, head_dim=128, capacity=128, cache_dtype="e4m3")
    given = inputs.make(shape, 0, np.array([20]))
    whole = run(module(), launch.plan(shape), given)["o"]
    parts, state = [], given
    for first, count in ((0, 41), (41, 49)):
        new = {name: np.ascontiguousarray(given[name][:, first : first + count]) for name in ("q", "k", "v", "gate")}
        state = state | new | {"past_len": np.array([20 + first], np.int32), "n_tokens": np.array([count], np.int32)}
        found = run(module(), launch.plan(replace(shape, tokens=count)), state)
        state |= {name: found[name] for name in ("k_cache", "v_cache")}
        parts.append(found["o"])
    assert relative_rms(np.concatenate(parts, 1), whole.astype(np.float64)) <= 2e-3


@pytest.mark.parametrize("splits", [1, 5])
def test_repeats_to_the_bit_in_any_order_of_the_warps(splits: int) -> None:
    by = launch.plan(replace(SMALL, tokens=3), splits)
    given = inputs.make(by.shape, 1, np.array([200]))
    first, second = (run(module(), by, given, order) for order in (FORWARD, REVERSE))
    assert all((first[name].view(np.uint16) == second[name].view(np.uint16)).all() for name in first)


def test_plans() -> None:
    assert launch.plan(Shape(tokens=1)).splits == 64
    assert launch.plan(Shape(tokens=2048)).workspace_bytes() == 0
    for tokens in range(1, 9):
        by = launch.plan(Shape(tokens=tokens))
        assert by.shared_bytes <= 99 << 10 and by.token_tiles == 1
    with pytest.raises(BuildError, match="heads of 96"):
        launch.plan(Shape(head_dim=96))
