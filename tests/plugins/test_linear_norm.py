"""The linear with the norm behind it: its two parts to the bit, whatever order its blocks end in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_planted_bugs_linear import sources

from deltart.errors import BuildError
from deltart.plugins import fp8_linear, residual_rms_norm
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear import inputs, launch
from deltart.plugins.fp8_linear.inputs import Shape
from deltart.plugins.fp8_linear.norm import can_join, linear_norm
from deltart.plugins.fp8_linear.op import FP8_LINEAR_NORM
from deltart.plugins.residual_rms_norm.inputs import Shape as NormShape
from deltart.plugins.residual_rms_norm.launch import norm
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.planted import is_caught

__all__ = ["sources"]  # the fixture

FOLDER, NORM = Path(fp8_linear.__file__).parent, Path(residual_rms_norm.__file__).parent
SHAPES = [Shape(1, tokens, n, k, dtype) for tokens, n, k, dtype in
          ((1, 512, 1040, "bf16"), (3, 264, 1152, "bf16"), (8, 136, 2064, "f32"), (1, 5120, 1024, "bf16"))]  # fmt: skip


def made(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    given = inputs.make(shape, seed)
    given = {name: given[name] for name in ("x", "weight", "weight_scale_inv")}
    given |= {"h": cast(rng.standard_normal((shape.rows, shape.n)), shape.dtype)}
    given |= {"norm_weight": cast(rng.uniform(-0.8, 1, shape.n), "bf16"), "arrived": np.zeros(1, np.int32)}
    return given | {name: poisoned((shape.rows, shape.n), shape.dtype) for name in ("y", "normed", "sum")}


def run(kernels: CpuModule, shape: Shape, arrays: dict[str, np.ndarray], order: int = FORWARD) -> None:
    at = {name: array.ctypes.data for name, array in arrays.items()}
    kernels.run([linear_norm(shape, "bf16", 1e-6, at)], order)


@pytest.fixture(scope="module")
def kernels() -> CpuModule:
    return compile_cpu(FOLDER / "norm.cu")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_its_two_parts_to_the_bit(kernels: CpuModule, shape: Shape) -> None:
    """Row by row the sums are the linear's and the norm's own: a plan may join them in one phase and not in another."""
    for order in (FORWARD, REVERSE):
        arrays = made(shape)
        for _ in range(2):  # the count of blocks is left as it was found
            run(kernels, shape, arrays, order)
        assert arrays["arrived"][0] == 0
        at = {name: array.ctypes.data for name, array in arrays.items()}
        apart = {name: np.empty_like(arrays["sum"]) for name in ("y", "normed", "sum")}
        places = at | {name: array.ctypes.data for name, array in apart.items()}
        compile_cpu(FOLDER / "decode.cu").run([launch.decode(shape, places)])
        other = NormShape(shape.rows, shape.n, shape.dtype, "bf16", 1e-6)
        compile_cpu(NORM / "kernel.cu").run(
            [norm(other, places | {"x": places["y"], "weight": at["norm_weight"], "y": places["normed"]})]
        )
        for name in ("sum", "normed"):
            np.testing.assert_array_equal(arrays[name], apart[name])


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_against_the_reference(kernels: CpuModule, shape: Shape) -> None:
    arrays = made(shape, 1)
    run(kernels, shape, arrays)
    wide = (arrays[t.name].astype(np.float64) for t in FP8_LINEAR_NORM.inputs)
    for name, expected in zip(("normed", "sum"), FP8_LINEAR_NORM.reference(*wide, 1e-6), strict=True):
        assert relative_rms(arrays[name], expected.reshape(shape.rows, shape.n)) <= TOLERANCE[shape.dtype]


BUGS = {
    "works before the last block is done": ("../common/last_block.cuh", "blocks - 1", "blocks - 2"),
    "the second call finds no last block": ("../common/last_block.cuh", "if (last) *arrived = 0;", ""),
    "one row for all": ("norm.cu", "row, floats);", "row, floats); if (false)"),  # its sums are the next one's too
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_fault_is_seen(sources: Path, bug: str) -> None:
    def passes(op: Path) -> bool:
        shape, kernels = SHAPES[1], compile_cpu(op / "norm.cu")
        good, bad = made(shape), made(shape)
        for order in (FORWARD, REVERSE):
            run(compile_cpu(FOLDER / "norm.cu"), shape, good, order)
            run(kernels, shape, bad, order)
            if good["normed"].tobytes() != bad["normed"].tobytes() or good["arrived"] != bad["arrived"]:
                return False
        return True

    assert is_caught(sources / "fp8_linear", *BUGS[bug], passes)


def test_only_what_fits_is_joined() -> None:
    assert can_join(Shape(1, 8, 5120, 17408)) and can_join(Shape(1, 1, 5120, 6144))
    assert not can_join(Shape(1, 9, 5120, 17408)) and not can_join(Shape(1, 1, 256, 256))
    with pytest.raises(BuildError, match="up to 8 tokens"):
        linear_norm(Shape(1, 9, 5120, 17408), "bf16", 1e-6, {})
