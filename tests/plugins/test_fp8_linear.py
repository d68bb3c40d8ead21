"""The block-FP8 linear against its float64 reference, on the CPU shim."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import fp8_linear
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.fp8_linear import inputs, launch
from deltart.plugins.fp8_linear.inputs import SHAPES_27B, Shape
from deltart.plugins.fp8_linear.reference import fp8_block_linear as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(fp8_linear.__file__).parent


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "decode.cu")


def run(
    kernels: CpuModule, shape: Shape, given: dict[str, np.ndarray], order: int = FORWARD, by: launch.Split | None = None
) -> np.ndarray:
    found = inputs.outputs(shape)
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    kernels.run([launch.decode(shape, at, by)], order)
    return found["y"]


def error(shape: Shape, y: np.ndarray, given: dict[str, np.ndarray]) -> float:
    (expected,) = reference(*(given[name].astype(np.float64) for name in ("x", "weight", "weight_scale_inv")))
    return relative_rms(y, expected)


def check(kernels: CpuModule, shape: Shape, seed: int = 0) -> bool:
    given = inputs.make(shape, seed)
    return error(shape, run(kernels, shape, given), given) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("slots, tokens", [(1, 1), (2, 1), (1, 8), (3, 3), (2, 8), (1, 17), (1, 63), (2, 50)])
def test_every_row_count(dtype: str, slots: int, tokens: int) -> None:
    assert check(module(), Shape(slots, tokens, n=272, k=384, dtype=dtype))


@pytest.mark.parametrize("scale_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("n, k", [(1, 16), (200, 176), (129, 1040), (48, 128), (300, 2000)])
def test_sizes_that_are_no_multiples_of_the_block(n: int, k: int, scale_dtype: str) -> None:
    for tokens in (1, 20):
        assert check(module(), Shape(tokens=tokens, n=n, k=k, dtype="f32", scale_dtype=scale_dtype))


def gates(kernels: CpuModule, shape: Shape) -> bool:
    given = inputs.make(shape, 0)
    up = {f"up_{name}": array for name, array in inputs.make(shape, 1).items() if name != "x"}
    found = inputs.outputs(shape)
    kernels.run(
        [launch.decode_gate_up(shape, {name: array.ctypes.data for name, array in (given | up | found).items()})]
    )
    x, *weights = (array.astype(np.float64) for array in (given | up).values())
    gate, value = (reference(x, *weights[i : i + 2])[0] for i in (0, 2))
    with np.errstate(over="ignore"):
        return relative_rms(found["y"], gate / (1 + np.exp(-gate)) * value) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("tokens, n, k", [(1, 300, 1040), (8, 48, 384), (13, 129, 400), (40, 272, 2000)])
def test_gate_and_up_in_one(tokens: int, n: int, k: int) -> None:
    for dtype in ("f32", "bf16"):
        assert gates(module(), Shape(tokens=tokens, n=n, k=k, dtype=dtype))


def test_every_finite_code_is_exact() -> None:
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    shape = Shape(n=len(codes), k=16, dtype="f32", scale_dtype="f32")
    weight = np.zeros((len(codes), 16), np.uint8)
    weight[:, 5] = codes
    given = {
        "x": np.zeros((1, 1, 16), np.float32),
        "weight": weight.view(ml_dtypes.float8_e4m3fn),
        "weight_scale_inv": np.ones((2, 1), np.float32),
    }
    given["x"][0, 0, 5] = 1.0
    assert (run(module(), shape, given)[0, 0] == given["weight"][:, 5].astype(np.float32)).all()


def test_repeats_to_the_bit_in_any_order_of_the_warps() -> None:
    for tokens in (1, 24):
        shape = Shape(tokens=tokens, n=160, k=1280)
        given = inputs.make(shape, 3)
        first, second = (run(module(), shape, given, order) for order in (FORWARD, REVERSE))
        assert (first.view(np.uint16) == second.view(np.uint16)).all()


@pytest.mark.parametrize(
    "by", [launch.Split(1, 1, 1), launch.Split(1, 2, 8), launch.Split(4, 4, 4), launch.Split(2, 1, 8)]
)
def test_every_split(by: launch.Split) -> None:
    shape = Shape(tokens=11, n=144, k=2304, dtype="f32")
    given = inputs.make(shape, 1)
    assert error(shape, run(module(), shape, given, by=by), given) <= TOLERANCE["f32"]


def goes_on(kernels: CpuModule, dtype: str) -> bool:
    """71 blocks of K for one warp: past two groups of 32, whose scales it has at once."""
    shape = Shape(tokens=3, n=20, k=70 * 128 + 48, dtype=dtype)
    given = inputs.make(shape, 7)
    return error(shape, run(kernels, shape, given, by=launch.Split(1, 1, 1)), given) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_warp_that_goes_on_for_long(dtype: str) -> None:
    assert goes_on(module(), dtype)


def test_plans_fill_a_gpu_and_fit_a_block() -> None:
    for n, k in SHAPES_27B.values():
        for tokens in range(1, 65):
            by = launch.split(Shape(tokens=tokens, n=n, k=k))
            assert 8 * by.tiles >= min(tokens, 32) and by.shared_bytes <= 99 << 10 and by.warps <= launch.MAX_WARPS
            assert -(-n // launch.ROWS) * by.parts >= 1024 or by.warps == launch.MAX_WARPS


def test_refuses_rows_that_are_not_aligned() -> None:
    with pytest.raises(BuildError, match="multiple of 16"):
        launch.decode(Shape(k=200), dict.fromkeys(("x", "weight", "weight_scale_inv", "y"), 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES_27B)
def test_27b_shapes(name: str) -> None:
    n, k = SHAPES_27B[name]
    for tokens in (1, 8):
        shape = Shape(tokens=tokens, n=n, k=k, dtype="f32")
        given = inputs.make(shape, tokens)
        rows = np.random.default_rng(0).choice(n, 256, replace=False)
        weight, scale = (given[i].astype(np.float64) for i in ("weight", "weight_scale_inv"))
        expected = given["x"].astype(np.float64) @ (weight[rows] * np.repeat(scale[rows // 128], 128, 1)[:, :k]).T
        assert relative_rms(run(module(), shape, given)[..., rows], expected) <= TOLERANCE["f32"]
