"""The gated RMS norm against its float64 reference, on the CPU shim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import gated_rms_norm
from deltart.plugins.cpu_shim.runner import CpuModule, compile_cpu
from deltart.plugins.gated_rms_norm import inputs, launch
from deltart.plugins.gated_rms_norm.inputs import Shape
from deltart.plugins.gated_rms_norm.reference import gated_rms_norm as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(gated_rms_norm.__file__).parent


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def check(kernels: CpuModule, shape: Shape, seed: int = 0) -> bool:
    """Head by head: the small ones count as much as the large ones."""
    given, found = inputs.make(shape, seed), inputs.outputs(shape)
    kernels.run([launch.norm(shape, {name: array.ctypes.data for name, array in (given | found).items()})])
    (expected,) = reference(*(given[name].astype(np.float64) for name in ("x", "weight", "z")), shape.epsilon)
    heads = zip(*(array.reshape(-1, shape.head_dim) for array in (found["y"], expected)), strict=True)
    return max(relative_rms(y, right) for y, right in heads) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("parameter_dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "slots, tokens, heads, head_dim",
    [(1, 1, 48, 128), (3, 5, 7, 128), (2, 1, 3, 64), (1, 3, 5, 20), (1, 2, 2, 256), (1, 1, 1, 512)],
)
def test_against_the_reference(
    slots: int, tokens: int, heads: int, head_dim: int, dtype: str, parameter_dtype: str
) -> None:
    assert check(module(), Shape(slots, tokens, heads, head_dim, dtype, parameter_dtype))


def test_epsilon_is_in_the_root() -> None:
    assert check(module(), Shape(tokens=4, heads=3, dtype="f32", epsilon=0.1))


def test_refuses_odd_heads() -> None:
    with pytest.raises(BuildError, match="multiple of 4"):
        launch.norm(Shape(head_dim=30), {})
