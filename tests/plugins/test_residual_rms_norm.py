"""The residual RMS norm against its float64 reference, on the CPU shim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import residual_rms_norm
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.residual_rms_norm import inputs, launch
from deltart.plugins.residual_rms_norm.inputs import Shape
from deltart.plugins.residual_rms_norm.reference import residual_rms_norm as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(residual_rms_norm.__file__).parent


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def check(kernels: CpuModule, shape: Shape, order: int = FORWARD) -> bool:
    """Row by row: the small ones count as much as the large ones."""
    given, found = inputs.make(shape, 0), inputs.outputs(shape)
    y, h = reference(*(given[name].astype(np.float64) for name in ("x", "h", "weight")), shape.epsilon)
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    kernels.run([launch.norm(shape, at)], order)
    rows = zip((*found["y"], *given["h"]), (*y, *h), strict=True)
    return max(relative_rms(mine, right) for mine, right in rows) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("parameter_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("rows, width", [(1, 5120), (3, 2048), (2, 1000), (5, 8), (1, 8192)])
def test_against_the_reference(rows: int, width: int, dtype: str, parameter_dtype: str) -> None:
    for order in (FORWARD, REVERSE):
        assert check(module(), Shape(rows, width, dtype, parameter_dtype), order)


def test_refuses_rows_that_do_not_fit() -> None:
    for width in (12, 8200):
        with pytest.raises(BuildError, match="multiple of 8"):
            launch.norm(Shape(width=width), {})
