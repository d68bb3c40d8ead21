"""Several linears of one x in one launch against their float64 references, on the CPU shim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import fp8_linear
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear import inputs
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.projections import Projection, decode
from deltart.plugins.fp8_linear.reference import fp8_block_linear as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(fp8_linear.__file__).parent
Arrays = dict[str, np.ndarray]


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "projections.cu")


def make(shape: Shape, fp8: tuple[int, ...], plain: tuple[int, ...]) -> tuple[Arrays, list[Projection]]:
    """x, and a weight of each size; scales and row sizes differ from weight to weight."""
    rng = np.random.default_rng(shape.rows)
    given, members = {"x": inputs.make(shape, 1)["x"]}, []
    for index, n in enumerate(fp8):
        one = inputs.make(Shape(n=n, k=shape.k, scale_dtype=shape.scale_dtype), index)
        given |= {f"w{index}": one["weight"], f"s{index}": one["weight_scale_inv"]}
        members.append(Projection(n, f"w{index}", f"y{index}", f"s{index}"))
    for index, n in enumerate(plain, len(fp8)):
        given[f"w{index}"] = cast(rng.standard_normal((n, shape.k)), "bf16")
        members.append(Projection(n, f"w{index}", f"y{index}"))
    return given, members


def run(kernels: CpuModule, shape: Shape, given: Arrays, members: list[Projection], order: int = FORWARD) -> Arrays:
    found = {m.y: poisoned((shape.slots, shape.tokens, m.n), shape.dtype) for m in members}
    kernels.run([decode(shape, members, {name: array.ctypes.data for name, array in (given | found).items()})], order)
    return found


def check(kernels: CpuModule, shape: Shape, fp8: tuple[int, ...], plain: tuple[int, ...] = ()) -> bool:
    given, members = make(shape, fp8, plain)
    found = run(kernels, shape, given, members)
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    errors = []
    for member in members:
        weight = wide[member.weight]
        y = reference(wide["x"], weight, wide[member.scale])[0] if member.scale else wide["x"] @ weight.T
        errors.append(relative_rms(found[member.y], y))
    return max(errors) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("slots, tokens", [(1, 1), (2, 4), (1, 13), (1, 33), (2, 32)])
@pytest.mark.parametrize("fp8, plain", [((272, 40, 129), ()), ((300, 128), (48, 47)), ((16,), (5,)), ((), (33, 8))])
def test_every_combination(slots: int, tokens: int, dtype: str, fp8: tuple[int, ...], plain: tuple[int, ...]) -> None:
    assert check(module(), Shape(slots, tokens, k=400, dtype=dtype), fp8, plain)


@pytest.mark.parametrize("k", [16, 1040, 2000])
def test_k_that_is_no_multiple_of_a_block(k: int) -> None:
    for scale_dtype in ("f32", "bf16"):
        assert check(module(), Shape(tokens=3, k=k, dtype="f32", scale_dtype=scale_dtype), (130, 64), (7, 3))


def test_repeats_to_the_bit_in_any_order_of_the_warps() -> None:
    shape = Shape(tokens=5, k=1280)
    given, members = make(shape, (160, 48, 32), (16, 16))
    first, second = (run(module(), shape, given, members, order) for order in (FORWARD, REVERSE))
    assert all((first[y].view(np.uint16) == second[y].view(np.uint16)).all() for y in first)


def test_refuses_more_weights_than_it_takes() -> None:
    shape = Shape(k=64)
    given, members = make(shape, (16,) * 4, ())
    with pytest.raises(BuildError, match="4 block-FP8 weights"):
        decode(shape, members, dict.fromkeys([*given, *(m.y for m in members)], 0))


@pytest.mark.slow
@pytest.mark.parametrize("fp8, plain", [((12288, 1024, 1024), ()), ((10240, 6144), (48, 48))])
def test_27b_shapes(fp8: tuple[int, ...], plain: tuple[int, ...]) -> None:
    for tokens in (1, 8):
        assert check(module(), Shape(tokens=tokens, k=5120, dtype="f32"), fp8, plain)
