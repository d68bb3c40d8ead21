"""Convolution, gated delta rule and norm in one launch: its parts to the bit, float64, and who rolls the state."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import test_causal_conv1d as conv
import test_delta_norm as normed

from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.causal_conv1d import launch as conv_launch
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule
from deltart.plugins.dtypes import poisoned
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.norm import Norm, conv_decode_norm
from deltart.plugins.gated_delta_rule.op import CONV_GATED_DELTA_NORM
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support import gdr_on_shim as shim
from support.planted import copy_kernels, is_caught, passes_check

TWO_KEYS = {"key_heads": 2, "value_heads": 6}
STATES = ("S", "conv_state")
Arrays = dict[str, np.ndarray]


def made(shape: Shape, norm: Norm, conv_dtype: str = "bf16", seed: int = 0) -> Arrays:
    """Inputs of a call that commits a part, everything NaN where no token is."""
    arrays = normed.made(shape, norm, seed)
    sizes = conv_inputs.Shape(shape.slots, shape.tokens, shape.width, shape.dtype, conv_dtype)
    given = conv_inputs.make(sizes, seed)
    arrived = np.zeros(shape.slots * shape.key_heads, np.int32)
    arrays |= {"conv_weight": given["weight"], "conv_state": given["state"], "arrived": arrived}
    return arrays | {"x": arrays.pop("qkv"), "conv_commit": arrays["n_commit"]}


def run(kernels: CpuModule, shape: Shape, norm: Norm, arrays: Arrays, order: int = FORWARD) -> None:
    conv_dtype = "f32" if arrays["conv_weight"].dtype == np.float32 else "bf16"
    kernels.run([conv_decode_norm(shape, norm, conv_dtype, shim.addresses(arrays))], order)


def expected(shape: Shape, norm: Norm, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """y, S and the convolution's state in float64."""
    inputs = CONV_GATED_DELTA_NORM.inputs
    wide = (arrays[t.name] if t.dtype == "I32" else arrays[t.name].astype(np.float64) for t in inputs)
    heads = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
    return CONV_GATED_DELTA_NORM.reference(*wide, *heads, norm.epsilon)


def check(
    kernels: CpuModule, shape: Shape, norm: Norm, conv_dtype: str = "bf16", order: int = FORWARD, steps: int = 2
) -> bool:
    """Whether calls one after another keep to the tolerances; the convolution's state, which is copied, must be exact,
    and that of an idle slot is left alone."""
    states: Arrays = {}
    for step in range(steps):
        arrays = made(shape, norm, conv_dtype, step) | states
        y, S, conv_state = expected(shape, norm, arrays)
        before, idle = {name: arrays[name].copy() for name in STATES}, arrays["n_commit"] == 0
        run(kernels, shape, norm, arrays, order)
        live = np.arange(shape.tokens)[None] < arrays["n_tokens"][:, None]
        found = arrays["y"].astype(np.float64)
        assert np.isfinite(found).all(), "an output was not written"
        if not (
            relative_rms(found[live], y[live]) <= TOLERANCE[shape.dtype]
            and relative_rms(arrays["S"], S) <= TOLERANCE[shape.dtype]  # of outputs that were rounded on the way
            and np.array_equal(arrays["conv_state"].astype(np.float64), conv_state)
            and all(np.array_equal(arrays[name][idle], before[name][idle]) for name in STATES)
            and not found[~live].any()
            and not arrays["arrived"].any()
        ):
            return False
        states = {name: arrays[name] for name in (*STATES, "arrived")}
    return True


@pytest.mark.parametrize("dtype, conv_dtype", list(product(("f32", "bf16"), repeat=2)))
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 8])
def test_against_the_reference(dtype: str, conv_dtype: str, tokens: int) -> None:
    shape = Shape(3, tokens, dtype=dtype, **TWO_KEYS)
    for order in (FORWARD, REVERSE):
        assert check(shim.module("conv"), shape, Norm("f32", 1e-5), conv_dtype, order)


@pytest.mark.parametrize("value_dim, heads", [(16, 1), (32, 2), (112, 4)])
def test_narrow_and_shared_heads(value_dim: int, heads: int) -> None:
    shape = Shape(2, 3, 1, heads, value_dim=value_dim, dtype="f32")
    assert check(shim.module("conv"), shape, Norm())


def test_twenty_calls_with_drafts() -> None:
    assert check(shim.module("conv"), Shape(3, 4, dtype="f32", **TWO_KEYS), Norm(), steps=20)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_it_is_its_parts_to_the_bit(dtype: str, tokens: int) -> None:
    """A plan may join them in one phase and not in another."""
    shape, norm = Shape(3, tokens, dtype=dtype, **TWO_KEYS), Norm()
    results = []
    for order in (FORWARD, REVERSE):
        arrays = made(shape, norm)
        run(shim.module("conv"), shape, norm, arrays, order)
        results.append([arrays[name].tobytes() for name in ("y", *STATES)])
    assert results[0] == results[1]
    apart = made(shape, norm)
    sizes = conv_inputs.Shape(shape.slots, tokens, shape.width, dtype)
    qkv = poisoned(apart["x"].shape, dtype)
    at = shim.addresses(apart, {"weight": apart["conv_weight"], "state": apart["conv_state"], "y": qkv})
    conv.module().run([conv_launch.forward(sizes, at)])
    normed.run(shim.module("norm"), shape, norm, apart | {"qkv": qkv})
    for name in ("y", *STATES):
        np.testing.assert_array_equal(arrays[name], apart[name])


def passes(op: Path) -> bool:
    kernels, norm = shim.module("conv", folder=op), Norm("f32", 0.1)
    shapes = (Shape(3, 5, dtype="f32", **TWO_KEYS), Shape(4, 1, dtype="f32", **TWO_KEYS))
    return all(check(kernels, shape, norm, "f32", order) for shape in shapes for order in (FORWARD, REVERSE))


CONV, TAPS = "conv.cu", "../causal_conv1d/taps.cuh"
BUGS = {
    "outputs read before they are there": (CONV, "    __syncthreads();  // the block", "    // the block"),
    "one block too few waited for": (CONV, "in.value_heads / in.key_heads - 1)", "in.value_heads / in.key_heads - 2)"),
    "the first block rolls": (CONV, "!= in.value_heads / in.key_heads - 1) return;", "!= 0) return;"),
    "every block rolls": (CONV, "    if (__shfl_sync(kFullWarp, before, 0) !=", "    if (false && before !="),
    "counts left as they are": (CONV, "    if (at.lane == 0) arrived", "    if (false) arrived"),
    "one count for all key heads": (CONV, "before = atomicAdd(arrived + at.slot * in.key_heads + at.key_head, 1)",
                                    "before = atomicAdd(arrived + at.slot * in.key_heads, 1)"),
    "idle slots counted": (CONV, "|| !n_commit[at.slot]) return;", ") return;"),
    "an idle slot's state touched": (CONV, "min(n_commit[at.slot], in.tokens)", "max(n_commit[at.slot], 1)"),
    "drafts kept": (CONV, "min(n_commit[at.slot], in.tokens)", "n_commit[at.slot] ? in.tokens : 0"),
    "v's state rolled twice": (CONV, "at.warp == max(warps - 2, 0)", "at.warp >= warps - 2"),
    "v's state not rolled": (CONV, "at.warp == max(warps - 2, 0)", "false"),
    "keys' state not rolled": (CONV, "(in, at, commit, in.key_heads * kKeyDim + key);", "(in, at, commit, key);"),
    "keys convolved as queries": (CONV, "(part * in.key_heads + at.key_head)", "at.key_head"),
    "taps of the channel before": (CONV, "taps + c * kTaps", "taps + max(c - 1, 0) * kTaps"),
    "a window too early": (CONV, "t - 3 + i", "max(t - 4, -3) + i"),
    "o over z": ("norm.cuh", "run(in, qkv, at, shared, gate.o", "run(in, qkv, at, shared, gate.z"),
    "state one input late": (TAPS, "commit - 3 + i", "commit - 2 + i"),
    "a row of the state not written": (TAPS, "i < 3; ++i) store(state", "i < 2; ++i) store(state"),
}  # fmt: skip


@pytest.fixture
def op(tmp_path: Path) -> Path:
    """The op's folder in a copy of the kernels that can be patched."""
    copy_kernels(tmp_path)
    return tmp_path / "gated_delta_rule"


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(op: Path, bug: str) -> None:
    assert is_caught(op, *BUGS[bug], passes)


@pytest.mark.slow
def test_an_unbroken_copy_passes(op: Path) -> None:
    assert passes_check(passes, op)


def test_the_lines_to_break_are_there() -> None:
    assert {(shim.FOLDER / name).read_text().count(right) for name, right, _ in BUGS.values()} == {1}
