"""The gated delta rule with the norm behind it: its two parts to the bit, and float64."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import gated_rms_norm
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.dtypes import poisoned
from deltart.plugins.gated_delta_rule import inputs
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.norm import Norm, can_join, decode_norm
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_NORM
from deltart.plugins.gated_rms_norm.inputs import Shape as NormShape
from deltart.plugins.gated_rms_norm.launch import norm as norm_alone
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support import gdr_on_shim as shim
from support.planted import copy_kernels, is_caught, passes_check
from support.speculation_on_shim import counts

NORM = Path(gated_rms_norm.__file__).parent
FEW = {"key_heads": 1, "value_heads": 3}
Arrays = dict[str, np.ndarray]


def made(shape: Shape, norm: Norm, seed: int = 0) -> Arrays:
    """Inputs of a call that commits a part, z NaN where no token is."""
    rng = np.random.default_rng(seed)
    n, commit = counts(rng, shape.slots, shape.tokens)
    n[-1] = shape.tokens
    given = inputs.make(shape, seed, 0.9, n, commit)
    given |= inputs.gating(shape, seed, norm.weight_dtype)
    given["z"][np.arange(shape.tokens)[None] >= n[:, None]] = np.nan
    return given | {"y": poisoned(given["z"].shape, shape.dtype)}


def run(kernels: CpuModule, shape: Shape, norm: Norm, arrays: Arrays, order: int = FORWARD) -> None:
    kernels.run([decode_norm(shape, norm, shim.addresses(arrays))], order)


def check(kernels: CpuModule, shape: Shape, norm: Norm, order: int = FORWARD, seed: int = 0) -> bool:
    """Whether y and S keep to the tolerances an idle slot to its bytes, and padding to zero."""
    arrays = made(shape, norm, seed)
    before, n = arrays["S"].copy(), arrays["n_tokens"]
    wide = (arrays[t.name] if t.dtype == "I32" else arrays[t.name].astype(np.float64) for t in GATED_DELTA_NORM.inputs)
    heads = (shape.key_heads, shape.value_heads, shape.key_dim, shape.value_dim)
    expected, state = GATED_DELTA_NORM.reference(*wide, *heads, norm.epsilon)
    run(kernels, shape, norm, arrays, order)
    live = np.arange(shape.tokens)[None] < n[:, None]
    found = arrays["y"].astype(np.float64)
    assert np.isfinite(found).all(), "an output was not written"
    idle = arrays["n_commit"] == 0
    if found[~live].any() or not np.array_equal(arrays["S"][idle], before[idle]):
        return False
    error = relative_rms(found[live], expected[live])
    tolerance = TOLERANCE["f32" if shape.dtype == "f32" else "state"]
    return error <= TOLERANCE[shape.dtype] and relative_rms(arrays["S"], state) <= tolerance


@pytest.mark.parametrize("dtype, weight", list(product(("f32", "bf16"), repeat=2)))
@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
def test_against_the_reference(dtype: str, weight: str, tokens: int) -> None:
    shape, norm = Shape(3, tokens, dtype=dtype, **FEW), Norm(weight, 1e-5)
    for order in (FORWARD, REVERSE):
        assert check(shim.module("norm"), shape, norm, order, tokens)


@pytest.mark.parametrize("value_dim", [16, 48, 64, 112])
def test_narrow_heads(value_dim: int) -> None:
    assert check(shim.module("norm"), Shape(2, 3, value_dim=value_dim, dtype="f32", **FEW), Norm())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tokens", [1, 4, 8])
def test_it_is_its_two_parts_to_the_bit(dtype: str, tokens: int) -> None:
    """A plan may join them in one phase and not in another."""
    shape, norm = Shape(3, tokens, dtype=dtype, **FEW), Norm()
    results = []
    for order in (FORWARD, REVERSE):
        arrays = made(shape, norm)
        run(shim.module("norm"), shape, norm, arrays, order)
        results.append((arrays["y"].tobytes(), arrays["S"].tobytes()))
    assert results[0] == results[1]
    apart = made(shape, norm)
    o = shim.decode(shim.module("decode"), shape, apart)
    whole = NormShape(shape.slots, tokens, shape.value_heads, shape.value_dim, dtype, norm.weight_dtype, norm.epsilon)
    at = shim.addresses(apart, {"x": o, "weight": apart["norm_weight"]})
    compile_cpu(NORM / "kernel.cu").run([norm_alone(whole, at)])
    live = np.arange(tokens)[None] < apart["n_tokens"][:, None]
    np.testing.assert_array_equal(arrays["y"][live], apart["y"][live])
    np.testing.assert_array_equal(arrays["S"], apart["S"])


def test_only_what_fits_is_joined() -> None:
    assert can_join(Shape()) and can_join(Shape(64, 8)) and not can_join(Shape(tokens=9))
    assert not can_join(Shape(value_dim=256)) and not can_join(Shape(value_dim=72))
    with pytest.raises(BuildError, match="value heads of 256"):
        decode_norm(Shape(value_dim=256), Norm(), {})


def passes(op: Path) -> bool:
    kernels, shape = shim.module("norm", folder=op), Shape(3, 6, dtype="f32", **FEW)
    return all(check(kernels, shape, Norm("f32", 0.1), order, seed) for order in (FORWARD, REVERSE) for seed in (0, 1))


NORM_CU, DECODE = "norm.cu", "decode.cuh"
BUGS = {
    "columns of other warps read too early": (NORM_CU, "  __syncthreads();  // the", "  // the"),
    "z over the tokens' gates": (NORM_CU, "(before.token + T)", "(before.token)"),
    "o over z": (NORM_CU, "o = z + T * columns;", "o = z + columns;"),
    "every token by the first one's z": (NORM_CU, "gate.z + t * in.value_dim", "gate.z"),
    "padding's NaN": (NORM_CU, "if (t < at.n)", "if (true)"),
    "no epsilon": (NORM_CU, "in.value_dim, norm.epsilon", "in.value_dim, 0"),
    "half of a weight": (NORM_CU, "? 2 : 4)", "? 2 : 2)"),
    "copies not waited for": (DECODE, "wait_copies<0>();", ""),
    "drafts committed": (DECODE, "if (t + 1 == at.commit)", "if (t + 1 == at.n)"),
    "an idle slot's state touched": (DECODE, "min(in.n_commit[slot], n);", "max(in.n_commit[slot], 1);"),
    "squares added twice": ("../gated_rms_norm/norm.cuh", "warp_sum(sum)", "warp_sum(2 * sum)"),
}


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
