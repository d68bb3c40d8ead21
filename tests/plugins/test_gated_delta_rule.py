"""The gated delta rule kernels, on the CPU shim, against the float64 token recurrence."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE
from deltart.plugins.gated_delta_rule import inputs, launch, plugin
from deltart.plugins.gated_delta_rule.cases import calls
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.launch import Tiling
from deltart.plugins.tolerance import relative_rms
from support import gdr_on_shim as shim
from support.speculation_on_shim import worst_errors

FEW_HEADS = {"key_heads": 2, "value_heads": 6}
TYPES = pytest.mark.parametrize("dtype", ["f32", "bf16"])


@TYPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("order, tiles", [(FORWARD, Tiling(16, 4)), (REVERSE, Tiling(8, 2)), (FORWARD, None)])
def test_decode(dtype: str, tokens: int, order: int, tiles: Tiling | None) -> None:
    shape = Shape(slots=3, tokens=tokens, dtype=dtype, **FEW_HEADS)
    run = functools.partial(shim.decode, shim.module("decode"), order=order, tiles=tiles)
    assert shim.within(shape, shim.errors(run, shape, seed=tokens))


@TYPES
@pytest.mark.parametrize("chunk", [32, 64])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 63, 64, 65, 150])
def test_prefill(dtype: str, chunk: int, tokens: int) -> None:
    shape = Shape(slots=3, tokens=tokens, dtype=dtype, key_heads=1, value_heads=2)
    run = functools.partial(shim.prefill, shim.module("prefill"), order=tokens % 2, chunk=chunk)
    assert shim.within(shape, shim.errors(run, shape, seed=tokens))


def test_prefill_in_segments() -> None:
    shape = Shape(slots=3, tokens=150, dtype="f32", key_heads=1, value_heads=2, A_log_dtype="f32")
    run = functools.partial(shim.prefill, shim.module("prefill"), segment=64, warps=8)
    assert shim.within(shape, shim.errors(run, shape))


@pytest.mark.parametrize("cut", [1, 63, 100])
def test_prefill_of_the_parts_is_prefill_of_the_whole(cut: int) -> None:
    shape = Shape(tokens=130, dtype="f32", key_heads=1, value_heads=1)
    whole = inputs.make(shape, 0)
    expected, state = inputs.expected(shape, whole)
    outputs = []
    for first, last in ((0, cut), (cut, 130)):
        part = {name: np.ascontiguousarray(whole[name][:, first:last]) for name in ("qkv", "a", "b")}
        part["n_tokens"] = np.array([last - first], np.int32)
        part_shape = Shape(tokens=last - first, dtype="f32", key_heads=1, value_heads=1)
        outputs.append(shim.prefill(shim.module("prefill"), part_shape, whole | part))
    assert relative_rms(np.concatenate(outputs, 1), expected) <= 1e-5
    assert relative_rms(whole["S"], state) <= 1e-5


def test_prefill_remembers_exactly_after_forgetting_everything() -> None:
    shape = Shape(tokens=64, dtype="f32", key_heads=1, value_heads=1)
    given = inputs.make(shape, 0, 0.99)
    given["a"][:, :32:2] = 60.0  # sixteen tokens with g of about -60 exp(A_log)
    expected, state = inputs.expected(shape, given)
    o = shim.prefill(shim.module("prefill"), shape, given)
    assert relative_rms(o, expected) <= 1e-5 and relative_rms(given["S"], state) <= 1e-5


@pytest.mark.parametrize("A_log, dt_bias", [("f32", "f32"), ("f32", "bf16"), ("bf16", "f32")])
def test_parameters_have_types_of_their_own(A_log: str, dt_bias: str) -> None:
    sizes = {"slots": 2, "key_heads": 1, "value_heads": 3, "A_log_dtype": A_log, "dt_bias_dtype": dt_bias}
    for tokens, stem, call in ((2, "decode", shim.decode), (20, "prefill", shim.prefill)):
        shape = Shape(tokens=tokens, **sizes)
        assert shim.within(shape, shim.errors(functools.partial(call, shim.module(stem)), shape)), stem


@TYPES
@pytest.mark.parametrize("dim", [32, 64])
def test_small_heads(dtype: str, dim: int) -> None:
    sizes = {"slots": 2, "key_heads": 1, "value_heads": 2, "key_dim": dim, "value_dim": 32, "dtype": dtype}
    for tokens, stem, call in ((3, "decode", shim.decode), (70, "prefill", functools.partial(shim.prefill, chunk=32))):
        shape = Shape(tokens=tokens, **sizes)
        run = functools.partial(call, shim.module(stem, f"KEY_DIM={dim}"))
        assert shim.within(shape, shim.errors(run, shape, correlation=0.5)), stem


@TYPES
@pytest.mark.parametrize("tiles", [Tiling(8, 4), Tiling(16, 2)])
def test_fifty_calls_with_drafts(dtype: str, tiles: Tiling) -> None:
    shape = Shape(slots=3, tokens=4, dtype=dtype, key_heads=1, value_heads=2)
    assert shim.within(shape, worst_errors(shim.module("decode"), shape, steps=50, tiles=tiles))


@TYPES
@pytest.mark.parametrize("commit", range(9))
def test_the_state_is_bit_for_bit_that_of_the_committed_tokens(dtype: str, commit: int) -> None:
    """A call of 8 tokens that commits some, and a call of those alone."""
    shape = Shape(tokens=8, dtype=dtype, key_heads=1, value_heads=2)
    given = inputs.make(shape, 0, 0.9, n_commit=np.array([commit]))
    kept = {
        name: array[:, :commit].copy() if name in ("qkv", "a", "b") else array.copy() for name, array in given.items()
    }
    kept |= {name: np.array([commit], np.int32) for name in ("n_tokens", "n_commit")}
    o = shim.decode(shim.module("decode"), shape, given)
    if commit:
        alone = Shape(tokens=commit, dtype=dtype, key_heads=1, value_heads=2)
        np.testing.assert_array_equal(shim.decode(shim.module("decode"), alone, kept), o[:, :commit])
    np.testing.assert_array_equal(given["S"], kept["S"])


def test_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(BuildError, match="9 tokens"):
        launch.decode(Shape(tokens=9), {})
    with pytest.raises(BuildError, match="shared memory"):
        launch.chunking(Shape(tokens=64), shared_limit=16 << 10)
    with pytest.raises(BuildError, match="value heads"):
        launch.chunking(Shape(tokens=64, key_heads=5, value_heads=6))
    narrow = next(call for call in calls() if call.attributes["head_k_dim"] == 64)
    with pytest.raises(BuildError, match="key heads of 64"):
        plugin.launches(narrow.call())


@pytest.mark.slow
@TYPES
@pytest.mark.parametrize("correlation", [0.0, 0.99])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 63, 64, 65, 150])
def test_full_size_heads(dtype: str, correlation: float, tokens: int) -> None:
    shape = Shape(slots=2, tokens=tokens, dtype=dtype)
    run = functools.partial(shim.prefill, shim.module("prefill"))
    assert shim.within(shape, shim.errors(run, shape, correlation=correlation, ragged=False))
    if tokens <= launch.DECODE_TOKENS:
        run = functools.partial(shim.decode, shim.module("decode"))
        assert shim.within(shape, shim.errors(run, shape, correlation=correlation, ragged=False))


@pytest.mark.slow
@TYPES
@pytest.mark.parametrize("tokens", [2, 4, 8])
def test_fifty_calls_with_drafts_and_full_size_heads(dtype: str, tokens: int) -> None:
    shape = Shape(slots=2, tokens=tokens, dtype=dtype)
    assert shim.within(shape, worst_errors(shim.module("decode"), shape, steps=50))


@pytest.mark.slow
def test_prefill_of_thousands_of_tokens() -> None:
    shape = Shape(tokens=4500, dtype="bf16", key_heads=1, value_heads=1)
    run = functools.partial(shim.prefill, shim.module("prefill"))
    assert shim.within(shape, shim.errors(run, shape, ragged=False))
