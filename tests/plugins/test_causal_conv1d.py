"""The causal conv1d kernels, on the CPU shim, against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins.causal_conv1d import inputs, launch
from deltart.plugins.causal_conv1d.inputs import Shape
from deltart.plugins.cpu_shim.runner import CpuModule, compile_cpu
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.gdr_on_shim import addresses
from support.speculation_on_shim import convolution_holds

FOLDER = Path(inputs.__file__).resolve().parent
TYPES = pytest.mark.parametrize("dtype", ["f32", "bf16"])


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def check(kernels: CpuModule, shape: Shape, n: np.ndarray) -> bool:
    """Whether one call keeps to the tolerance; the state, which is copied, must be exact."""
    given, found = inputs.make(shape, 0, n), inputs.outputs(shape)
    expected, state = inputs.expected(given)
    kernels.run([launch.forward(shape, addresses(given, found))])
    error = relative_rms(found["y"], expected)
    assert np.isfinite(found["y"].astype(np.float32)).all(), "an output was not written"
    return error <= TOLERANCE[shape.dtype] and np.array_equal(given["state"].astype(np.float64), state)


@TYPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 63, 64, 65, 150])
def test_forward(dtype: str, tokens: int) -> None:
    shape = Shape(slots=5, tokens=tokens, channels=1032, dtype=dtype, parameter_dtype=dtype)
    assert check(module(), shape, np.array([tokens, 0, 1, min(2, tokens), tokens // 2], np.int32))


@TYPES
def test_full_size(dtype: str) -> None:
    assert check(module(), Shape(slots=1, tokens=65, dtype=dtype), np.array([65], np.int32))


@TYPES
def test_fifty_calls_with_drafts(dtype: str) -> None:
    assert convolution_holds(module(), dtype)


def test_refuses_odd_channels() -> None:
    with pytest.raises(BuildError, match="1031 channels"):
        launch.forward(Shape(channels=1031), {})
