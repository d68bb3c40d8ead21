"""The ops that only native plans have against their float64 references, on the CPU shim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, compile_cpu
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.kernel_call import Call, addresses, kernel_of
from deltart.plugins.linear import inputs as linear_inputs
from deltart.plugins.linear.op import LINEAR, LINEAR_GATE_UP, SILU_MUL
from deltart.plugins.residual_rms_norm.op import RESIDUAL_RMS_NORM, RMS_NORM
from deltart.plugins.rotary_table.op import ROTARY_TABLE
from deltart.plugins.rows.op import CONCAT_ROWS, EMBEDDING, TAKE_ROWS
from deltart.plugins.spec import OpSpec
from deltart.plugins.tolerance import TOLERANCE, relative_rms

SHORT = {"float32": "f32", "bfloat16": "bf16", "int64": "i64"}


def run(spec: OpSpec, arrays: list[np.ndarray], attributes: Mapping[str, Any], order: int = FORWARD) -> list[Any]:
    """The op's outputs for some inputs, as a native plan would call it; bf16 results start as NaN."""
    shapes = [array.shape for array in arrays]
    results = [poisoned(tuple(shape), "bf16") for shape in spec.output_shapes(shapes, attributes)]
    at = addresses(spec, [a.ctypes.data for a in arrays], [a.ctypes.data for a in results]) | {"workspace": 0}
    dtypes = {tensor.name: SHORT[str(array.dtype)] for tensor, array in zip(spec.inputs, arrays, strict=True)}
    kernel = kernel_of(spec)
    source, launches = kernel.launches(Call(spec.bind_axes(shapes, attributes), dtypes, at))
    compile_cpu(kernel.folder / source).run(launches, order)
    return results


def check(spec: OpSpec, arrays: list[np.ndarray], **attributes: Any) -> None:
    wide = [array if array.dtype == np.int64 else array.astype(np.float64) for array in arrays]
    expected = spec.reference(*wide, **attributes)
    for order in (FORWARD, REVERSE):
        for found, right in zip(run(spec, arrays, attributes, order), expected, strict=True):
            assert relative_rms(found, right) <= TOLERANCE["bf16"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return cast(np.random.default_rng(seed).standard_normal(shape), "bf16")


@pytest.mark.parametrize("rows, n, k", [(1, 64, 256), (3, 100, 144), (9, 48, 1040), (17, 130, 128), (40, 16, 16)])
def test_linears(rows: int, n: int, k: int) -> None:
    given = linear_inputs.make(Shape(1, rows, n, k), 0)
    x, gate, up = (given[name][None] for name in ("x", "gate", "up"))
    check(LINEAR, [x, given["weight"]])
    check(LINEAR_GATE_UP, [x, given["weight"], given["up_weight"]])
    check(SILU_MUL, [gate, up])


def test_a_linears_row_is_the_same_in_any_company() -> None:
    given = linear_inputs.make(Shape(1, 40, 96, 512), 1)
    (all_rows,) = run(LINEAR, [given["x"][None], given["weight"]], {})
    for count in (1, 9, 17):
        (some,) = run(LINEAR, [np.ascontiguousarray(given["x"][None, :count]), given["weight"]], {})
        np.testing.assert_array_equal(some[0], all_rows[0, :count])


@pytest.mark.parametrize("tokens, width", [(1, 8), (5, 1000), (3, 5120)])
def test_norms(tokens: int, width: int) -> None:
    x, h, weight = normal(2, tokens, width), normal(2, tokens, width, seed=1), normal(width, seed=2)
    check(RESIDUAL_RMS_NORM, [x, h, weight], epsilon=1e-6)
    check(RMS_NORM, [h, weight.astype(np.float32)], epsilon=1e-6)
    before = h.copy()
    run(RESIDUAL_RMS_NORM, [x, h, weight], {"epsilon": 1e-6})
    np.testing.assert_array_equal(h, before)


def test_rows_are_moved_as_they_are() -> None:
    rng, table, x = np.random.default_rng(0), normal(50, 2056), normal(3, 7, 2056, seed=1)
    ids, index = rng.integers(0, 50, (3, 4)), rng.integers(-7, 7, (3, 2))
    second = normal(3, 7, 8, seed=2)
    for spec, arrays in ((EMBEDDING, [ids, table]), (TAKE_ROWS, [x, index]), (CONCAT_ROWS, [x, second])):
        (expected,) = spec.reference(*arrays)
        np.testing.assert_array_equal(run(spec, arrays, {})[0], expected)


def test_a_row_that_is_not_there_is_nan() -> None:
    (found,) = run(EMBEDDING, [np.array([[0, 50, 2**40, -51]]), normal(50, 16)], {})
    assert np.isnan(found.astype(np.float32)).all(axis=-1).tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("scale", [1.0, 1.1386])
def test_rotary_table(scale: float) -> None:
    rng = np.random.default_rng(0)
    positions = rng.integers(0, 200_000, (3, 2, 9))
    axes, inv_freq = np.arange(24) % 3, (1e7 ** -(np.arange(24) / 24)).astype(np.float32)
    check(ROTARY_TABLE, [positions, axes, inv_freq], scale=scale)
    cos, sin = run(ROTARY_TABLE, [positions, axes, inv_freq], {"scale": scale})
    assert math.isclose(
        float((cos[0, 0].astype(float) ** 2 + sin[0, 0].astype(float) ** 2).mean()), scale**2, rel_tol=0.01
    )


def test_what_no_kernel_takes_is_refused() -> None:
    with pytest.raises(BuildError, match="stored as f32"):
        run(LINEAR, [normal(1, 2, 16), np.zeros((8, 16), np.float32)], {})
    with pytest.raises(BuildError, match="multiple of 8"):
        run(TAKE_ROWS, [normal(1, 2, 12), np.zeros((1, 1), np.int64)], {})
    with pytest.raises(BuildError, match="a table stored as f32"):
        run(EMBEDDING, [np.zeros((1, 1), np.int64), np.zeros((4, 8), np.float32)], {})
