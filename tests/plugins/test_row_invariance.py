"""A row's result does not depend on how many rows share the call: every decode kernel on the CPU shim, bit for bit.

What a GPU adds, its own `mma`, computes every element of a product from its row and its column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_causal_conv1d as conv
import test_conv_delta_norm as fused
import test_fp8_linear as linear
import test_gated_attention as attention
import test_int4_linear_kernels as int4
import test_lm_head as head
import test_moe_experts as moe
import test_projections as projections

from deltart.plugins import gated_rms_norm, qk_norm_rope, residual_rms_norm
from deltart.plugins.causal_conv1d import launch as conv_launch
from deltart.plugins.cpu_shim.runner import CpuModule, compile_cpu
from deltart.plugins.fp8_linear import launch as linear_launch
from deltart.plugins.gated_attention import launch as attention_launch
from deltart.plugins.gated_rms_norm import inputs as norm_inputs
from deltart.plugins.gated_rms_norm import launch as norm_launch
from deltart.plugins.int4_linear import launch as int4_launch
from deltart.plugins.qk_norm_rope import inputs as rope_inputs
from deltart.plugins.qk_norm_rope import launch as rope_launch
from deltart.plugins.residual_rms_norm import inputs as residual_inputs
from deltart.plugins.residual_rms_norm import launch as residual_launch
from support import gdr_on_shim as shim
from support.gdr_on_shim import addresses

Arrays = dict[str, np.ndarray]
MOST = 64  # rows of a call up to which the linears promise it
COUNTS = (*range(1, 9), 9, 16, 17, 32, 33)
TYPES = pytest.mark.parametrize("dtype", ["f32", "bf16"])


def equal(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and found.tobytes() == expected.tobytes()


def rows_alone(call: Callable[[slice], Arrays], counts: tuple[int, ...] = COUNTS, most: int = MOST) -> None:
    """`call` on some of `most` rows gives what it gives for them among all."""
    whole = call(slice(0, most))
    for part in (*(slice(0, n) for n in counts), slice(most - 1, most), slice(3, 8)):
        for name, array in call(part).items():
            assert equal(array, np.ascontiguousarray(whole[name][part])), (name, part)


@TYPES
@pytest.mark.parametrize("n, k", [(48, 1168), (272, 256)])
def test_linear(dtype: str, n: int, k: int) -> None:
    shape = linear.Shape(MOST, n=n, k=k, dtype=dtype)
    given = linear.inputs.make(shape, 0)

    def call(rows: slice) -> Arrays:
        x = np.ascontiguousarray(given["x"][rows])
        return {"y": linear.run(linear.module(), replace(shape, slots=len(x)), given | {"x": x})}

    rows_alone(call)


@TYPES
def test_gate_and_up(dtype: str) -> None:
    shape = linear.Shape(MOST, n=48, k=1040, dtype=dtype)
    given = linear.inputs.make(shape, 0)
    given |= {f"up_{name}": array for name, array in linear.inputs.make(shape, 1).items() if name != "x"}

    def call(rows: slice) -> Arrays:
        x = np.ascontiguousarray(given["x"][rows])
        one = replace(shape, slots=len(x))
        found = linear.inputs.outputs(one)
        linear.module().run([linear_launch.decode_gate_up(one, addresses(given | {"x": x}, found))])
        return found

    rows_alone(call)


@TYPES
def test_projections(dtype: str) -> None:
    shape = linear.Shape(MOST, k=1040, dtype=dtype)
    given, members = projections.make(shape, (48, 130), (16, 5))

    def call(rows: slice) -> Arrays:
        x = np.ascontiguousarray(given["x"][rows])
        return projections.run(projections.module(), replace(shape, slots=len(x)), given | {"x": x}, members)

    rows_alone(call)


@TYPES
def test_int4(dtype: str) -> None:
    """Alone, gated, and together: with two parts of K the plain weights have more than the packed ones."""
    shape = int4.Shape(MOST, k=288, group=32, dtype=dtype)
    given, members = int4.several(shape, (48, 130), (16, 5))

    def together(rows: slice) -> Arrays:
        x = np.ascontiguousarray(given["x"][rows])
        return int4.project(int4.module("projections"), replace(shape, slots=len(x)), given | {"x": x}, members)

    rows_alone(together, (1, 8, 17))
    shape = int4.Shape(MOST, n=48, k=1312, group=32, dtype=dtype)
    alone, _ = int4.pair(shape)

    def call(rows: slice) -> Arrays:
        part = alone | {"x": np.ascontiguousarray(alone["x"][rows])}
        one = replace(shape, slots=len(part["x"]))
        found = int4.inputs.outputs(one)
        int4.module().run([int4_launch.decode_gate_up(one, addresses(part, found))])
        return {"y": int4.run(int4.module(), one, part), "gated": found["y"]}

    rows_alone(call)


@TYPES
@pytest.mark.parametrize("weight_dtype", ["bf16", "e4m3"])
def test_head(dtype: str, weight_dtype: str) -> None:
    shape = head.Shape(MOST, 300, 208, 290, 3, 0, dtype, weight_dtype)
    given = head.inputs.make(shape, 0)

    def call(rows: slice) -> Arrays:
        x = np.ascontiguousarray(given["x"][rows])
        return head.run(head.module(), replace(shape, rows=len(x)), given | {"x": x})

    rows_alone(call)


@TYPES
@pytest.mark.parametrize("stored", ["bf16", "e4m3"])
def test_experts(stored: str, dtype: str) -> None:
    """Each call groups other tokens by expert, in tiles of another height."""
    shape = replace(moe.SMALL, slots=MOST, stored=stored, dtype=dtype)
    given = moe.inputs.make(shape, 0)

    def call(rows: slice) -> Arrays:
        part = given | {name: np.ascontiguousarray(given[name][rows]) for name in ("x", "logits", "n_tokens")}
        return {"y": moe.run(replace(shape, slots=len(part["x"])), part)["y"]}

    rows_alone(call)


def kernel(package: object) -> CpuModule:
    return compile_cpu(Path(str(package.__file__)).parent / "kernel.cu")  # type: ignore[attr-defined]


@TYPES
def test_queries_and_keys(dtype: str) -> None:
    shape = rope_inputs.Shape(8, heads=3, kv_heads=1, dtype=dtype)
    given = rope_inputs.make(shape, 0)

    def call(rows: slice) -> Arrays:
        part = given | {name: np.ascontiguousarray(given[name][rows]) for name in ("q_gate", "k", "cos", "sin")}
        one = replace(shape, slots=len(part["k"]))
        found = rope_inputs.outputs(one)
        kernel(qk_norm_rope).run([rope_launch.rope(one, addresses(part, found))])
        return found

    rows_alone(call, tuple(range(1, 9)), 8)


@TYPES
def test_gated_norm(dtype: str) -> None:
    shape = norm_inputs.Shape(8, heads=3, dtype=dtype)
    given = norm_inputs.make(shape, 0)

    def call(rows: slice) -> Arrays:
        part = given | {name: np.ascontiguousarray(given[name][rows]) for name in ("x", "z")}
        one = replace(shape, slots=len(part["x"]))
        found = norm_inputs.outputs(one)
        kernel(gated_rms_norm).run([norm_launch.norm(one, addresses(part, found))])
        return found

    rows_alone(call, tuple(range(1, 9)), 8)


@TYPES
def test_residual_norm(dtype: str) -> None:
    shape = residual_inputs.Shape(8, 520, dtype=dtype)
    given = residual_inputs.make(shape, 0)

    def call(rows: slice) -> Arrays:
        part = given | {name: np.array(given[name][rows]) for name in ("x", "h")}
        one = replace(shape, rows=len(part["x"]))
        found = residual_inputs.outputs(one)
        kernel(residual_rms_norm).run([residual_launch.norm(one, addresses(part, found))])
        return found | {"h": part["h"]}

    rows_alone(call, tuple(range(1, 9)), 8)


@TYPES
@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_convolution(dtype: str, tokens: int) -> None:
    shape = conv.Shape(8, tokens, 64, dtype)
    given = conv.inputs.make(shape, 0, np.random.default_rng(tokens).integers(0, tokens + 1, 8))

    def call(rows: slice) -> Arrays:
        part = given | {name: np.array(given[name][rows]) for name in ("x", "state", "n_commit")}
        one = replace(shape, slots=len(part["x"]))
        found = conv.inputs.outputs(one)
        conv.module().run([conv_launch.forward(one, addresses(part, found))])
        return found | {"state": part["state"]}

    rows_alone(call, tuple(range(1, 9)), 8)


@TYPES
@pytest.mark.parametrize("tokens", [1, 4])
def test_delta_rule(dtype: str, tokens: int) -> None:
    """The geometry follows from slots * heads: 300 heads in all take more warps a block. For T, see its own tests."""
    shape = shim.inputs.Shape(6, tokens, 1, 50, value_dim=16, dtype=dtype)
    given = shim.inputs.make(shape, 0, 0.9, n_commit=np.random.default_rng(tokens).integers(0, tokens + 1, 6))

    def call(rows: slice) -> Arrays:
        names = ("qkv", "a", "b", "S", "n_tokens", "n_commit")
        part = given | {name: np.array(given[name][rows]) for name in names}
        o = shim.decode(shim.module("decode"), replace(shape, slots=len(part["S"])), part)
        return {"o": o, "S": part["S"]}

    rows_alone(call, (1, 2, 5, 6), 6)


@TYPES
@pytest.mark.parametrize("tokens", [1, 4])
def test_delta_rule_with_its_neighbours(dtype: str, tokens: int) -> None:
    shape, norm = shim.inputs.Shape(6, tokens, 2, 6, value_dim=32, dtype=dtype), fused.Norm()
    given = fused.made(shape, norm)

    def call(rows: slice) -> Arrays:
        shared = ("A_log", "dt_bias", "norm_weight", "conv_weight", "arrived")
        part = {name: array.copy() if name in shared else np.array(array[rows]) for name, array in given.items()}
        fused.run(shim.module("conv"), replace(shape, slots=len(part["S"])), norm, part)
        return {name: part[name] for name in ("y", "S", "conv_state")}

    rows_alone(call, (1, 2, 5, 6), 6)


def sequence(lengths: list[int], tokens: int, cache: str = "bf16") -> tuple[attention.Shape, Arrays]:
    """Slots of these lengths that are given `tokens` tokens each."""
    shape = attention.Shape(len(lengths), tokens, 6, 1, 64, max(lengths) + tokens, cache)
    return shape, attention.inputs.make(shape, 0, np.array(lengths))


def slots(given: Arrays, rows: slice) -> Arrays:
    return {name: np.array(array[rows]) if not name.endswith("scale") else array for name, array in given.items()}


@pytest.mark.parametrize("cache", ["bf16", "e4m3"])
@pytest.mark.parametrize("tokens", [1, 8])
def test_attention_beside_other_slots(tokens: int, cache: str) -> None:
    shape, given = sequence([253, 0, 1, 31, 32, 100, 250, 126], tokens, cache)

    def call(rows: slice) -> Arrays:
        part = slots(given, rows)
        return attention.run(attention.module(), attention_launch.plan(replace(shape, slots=len(part["q"]))), part)

    rows_alone(call, tuple(range(1, 9)), 8)


@pytest.mark.parametrize("parts", [0, 2])
@pytest.mark.parametrize("past", [5, 124, 250])
def test_attention_token_by_token(past: int, parts: int) -> None:
    """Eight tokens in calls of 1 .. 8; with two parts of the keys, 129 and 257 are where their lengths double."""
    shape, given = sequence([past, past - 3, past // 2], 8)
    whole = attention.run(attention.module(), attention_launch.plan(shape, parts), given)
    for size in range(1, 8):
        state, found = given, []
        for first in range(0, 8, size):
            new = {n: np.array(given[n][:, first : first + size]) for n in ("q", "k", "v", "gate")}
            count = new["q"].shape[1]
            counts = {"past_len": given["past_len"] + np.int32(first), "n_tokens": np.full(3, count, np.int32)}
            by = attention_launch.plan(replace(shape, tokens=count), parts)
            after = attention.run(attention.module(), by, state | new | counts)
            state = state | {name: after[name] for name in ("k_cache", "v_cache")}
            found.append(after["o"])
        assert equal(np.concatenate(found, 1), whole["o"]), size
        assert equal(state["k_cache"], whole["k_cache"]) and equal(state["v_cache"], whole["v_cache"])


def test_the_comparison_sees_another_order_of_the_sums() -> None:
    shape, given = sequence([250, 100], 4)
    first, second = (attention.run(attention.module(), attention_launch.plan(shape, n), given)["o"] for n in (2, 8))
    assert not equal(first, second)
    one = linear.Shape(n=48, k=1168, dtype="f32")
    weights = linear.inputs.make(one, 0)
    ways = [linear.run(linear.module(), one, weights, by=linear_launch.Split(1, 1, n)) for n in (4, 8)]
    assert not equal(*ways)
