"""The prefill kernels of the block-FP8 linear against float64, on the CPU shim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_fp8_block_linear import FOLDER, error

from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.fp8_block_linear import inputs, launch
from deltart.plugins.fp8_block_linear.inputs import Shape
from deltart.plugins.fp8_block_linear.reference import dequantize, quantize_activations
from deltart.plugins.tolerance import TOLERANCE, relative_rms

Arrays = dict[str, np.ndarray]
SIZES = [(1, 1, 16), (65, 200, 176), (130, 129, 1040), (200, 256, 384), (128, 128, 128)]


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "prefill.cu")


def run(kernels: CpuModule, shape: Shape, given: Arrays, quantized: bool, order: int = FORWARD) -> Arrays:
    work = {name: np.full(size, 0xFF, np.uint8) for name, size in launch.workspace(shape).items()}
    found = inputs.outputs(shape) | work
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    kernels.run(launch.prefill_w8a8(shape, at) if quantized else [launch.prefill(shape, at)], order)
    return found


def quantized_error(shape: Shape, given: Arrays, found: Arrays) -> float:
    """Against the reference with the same activation quantization; the codes and scales must be its own."""
    codes, scale = quantize_activations(given["x"].astype(np.float32).reshape(shape.rows, shape.k))
    assert (found["codes"].reshape(codes.shape) == codes.view(np.uint8)).all()
    assert (found["x_scale"].view(np.float32).reshape(scale.shape) == scale).all()
    x = codes.astype(np.float64) * np.repeat(scale.astype(np.float64), inputs.BLOCK, 1)[:, : shape.k]
    expected = x @ dequantize(given["weight"].astype(np.float64), given["weight_scale_inv"].astype(np.float64)).T
    return relative_rms(found["y"].reshape(shape.rows, -1), expected)


def check(kernels: CpuModule, shape: Shape, quantized: bool, order: int = FORWARD) -> bool:
    given = inputs.make(shape, 0)
    found = run(kernels, shape, given, quantized, order)
    wrong = quantized_error(shape, given, found) if quantized else error(shape, found["y"], given)
    return wrong <= TOLERANCE["bf16"]


@pytest.mark.parametrize("scale_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tokens, n, k", SIZES)
def test_w8a16(tokens: int, n: int, k: int, scale_dtype: str) -> None:
    for order in (FORWARD, REVERSE):
        assert check(module(), Shape(tokens=tokens, n=n, k=k, scale_dtype=scale_dtype), False, order)


@pytest.mark.parametrize("tokens, n, k", SIZES)
def test_w8a8(tokens: int, n: int, k: int) -> None:
    for order in (FORWARD, REVERSE):
        assert check(module(), Shape(tokens=tokens, n=n, k=k), True, order)


def test_w8a8_before_rounding() -> None:
    """Integers that bf16 holds exactly: no rounding of y hides an error, so the result is exact."""
    shape = Shape(tokens=70, n=136, k=256, scale_dtype="f32")
    given = inputs.make(shape, 0)
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, (shape.rows, shape.k)) * 448.0
    given["x"][...] = np.where(rng.random(x.shape) < 0.1, x, 0.0)
    given["weight"][...] = rng.integers(-1, 2, given["weight"].shape)
    given["weight_scale_inv"][...] = 2.0**-6
    found = run(module(), shape, given, True)
    assert quantized_error(shape, given, found) == 0


def test_a_zero_group_is_zero() -> None:
    shape = Shape(tokens=3, n=40, k=144)
    given = inputs.make(shape, 0)
    given["x"][0, :, :128] = 0
    given["x"][0, 1] = 0
    found = run(module(), shape, given, True)
    assert quantized_error(shape, given, found) <= TOLERANCE["bf16"]
    assert (found["y"][0, 1] == 0).all()


def test_many_tokens_take_the_tiles() -> None:
    at = dict.fromkeys(("x", "weight", "weight_scale_inv", "y"), 0)
    assert launch.forward(Shape(tokens=64), at)[0] == "decode.cu"
    assert launch.forward(Shape(slots=2, tokens=33), at)[0] == "prefill.cu"
    assert launch.forward(Shape(tokens=65, dtype="f32"), at)[0] == "decode.cu"
    assert max(launch.PREFILL_SHARED.values()) <= 99 << 10


def test_repeats_to_the_bit() -> None:
    shape = Shape(tokens=70, n=136, k=400)
    given = inputs.make(shape, 0)
    for quantized in (False, True):
        first, second = (run(module(), shape, given, quantized, order)["y"] for order in (FORWARD, REVERSE))
        assert first.tobytes() == second.tobytes()
