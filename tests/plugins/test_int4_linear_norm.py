"""The int4 linear with the norm behind it: its two parts to the bit, whatever order its blocks end in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_planted_bugs_linear import sources

from deltart.errors import BuildError
from deltart.plugins import int4_linear, residual_rms_norm
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, compile_cpu
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.int4_linear import inputs, launch
from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.int4_linear.norm import can_join, linear_norm
from deltart.plugins.int4_linear.op import INT4_LINEAR_NORM
from deltart.plugins.residual_rms_norm.inputs import Shape as NormShape
from deltart.plugins.residual_rms_norm.launch import norm
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.planted import is_caught

__all__ = ["sources"]  # the fixture
FOLDER, NORM = Path(int4_linear.__file__).parent, Path(residual_rms_norm.__file__).parent
Arrays = dict[str, np.ndarray]
EPSILON = 1e-6
SHAPES = [
    Shape(1, 1, 512, 1280, 128),
    Shape(1, 3, 264, 1056, 32, scale_dtype="f16"),  # odd numbers of groups, of vectors of a row
    Shape(2, 4, 136, 2080, 32, "f32"),
    Shape(1, 1, 5120, 1024, 128),
    Shape(1, 2, 8192, 1024, 256, "f32", "f32"),  # all of a thread's vectors
]


def made(shape: Shape, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    given = inputs.make(shape, seed)
    given |= {"h": cast(rng.standard_normal((shape.slots, shape.tokens, shape.n)), shape.dtype)}
    given |= {"norm_weight": cast(rng.uniform(-0.8, 1, shape.n), "bf16"), "arrived": np.zeros(1, np.int32)}
    return given | {name: poisoned(given["h"].shape, shape.dtype) for name in ("y", "normed", "sum")}


def at(arrays: Arrays) -> dict[str, int]:
    return {name: array.ctypes.data for name, array in arrays.items()}


def joined(op: Path, shape: Shape, order: int) -> Arrays:
    """What a second call leaves: the count of blocks is as the first one found it. Until a thread has waited for what
    ran before, it sees nothing but the weights."""
    arrays, kernels = made(shape), compile_cpu(op / "norm.cu")
    kernels.hold([(a.ctypes.data, a.nbytes) for name, a in arrays.items() if "weight" not in name])
    try:
        for _ in range(2):
            kernels.run([linear_norm(shape, "bf16", EPSILON, at(arrays))], order)
    finally:
        kernels.hold([])  # of all modules of the process
    return arrays


def apart(shape: Shape) -> Arrays:
    """The linear and the norm as launches of their own."""
    arrays = made(shape)
    compile_cpu(FOLDER / "decode.cu").run([launch.decode(shape, at(arrays))])
    places = at(arrays) | {"x": arrays["y"].ctypes.data, "weight": arrays["norm_weight"].ctypes.data}
    other = NormShape(shape.rows, shape.n, shape.dtype, "bf16", EPSILON)
    compile_cpu(NORM / "kernel.cu").run([norm(other, places | {"y": arrays["normed"].ctypes.data})])
    return arrays


def is_its_parts(op: Path, shape: Shape) -> bool:
    """Row by row the sums are the linear's and the norm's own: a plan may join them in one phase, not in another."""
    expected = apart(shape)
    for order in (FORWARD, REVERSE):
        found = joined(op, shape, order)
        if found["arrived"][0] or any(found[name].tobytes() != expected[name].tobytes() for name in ("sum", "normed")):
            return False
    return True


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_its_two_parts_to_the_bit(shape: Shape) -> None:
    assert is_its_parts(FOLDER, shape)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_against_the_reference(shape: Shape) -> None:
    arrays = joined(FOLDER, shape, FORWARD)
    kept = ("weight_groups", "arrived")
    given = (arrays[t.name] if t.name in kept else arrays[t.name].astype(np.float64) for t in INT4_LINEAR_NORM.inputs)
    for name, expected in zip(("normed", "sum"), INT4_LINEAR_NORM.reference(*given, shape.group, EPSILON), strict=True):
        assert relative_rms(arrays[name], expected) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_a_row_is_the_same_whatever_rows_share_the_call(slots: int) -> None:
    shape = Shape(8, 1, 264, 1056, 32)
    together, alone = made(shape), made(replace(shape, slots=slots))
    alone |= {name: together[name][:slots] for name in ("x", "h")} | {"norm_weight": together["norm_weight"]}
    for arrays, one in ((together, shape), (alone, replace(shape, slots=slots))):
        compile_cpu(FOLDER / "norm.cu").run([linear_norm(one, "bf16", EPSILON, at(arrays))])
    for name in ("sum", "normed"):
        assert alone[name].tobytes() == together[name][:slots].tobytes()


BLOCK, ROW = "../common/last_block.cuh", "../residual_rms_norm/norm.cuh"
BUGS = {
    "works before the last block is done": (BLOCK, "blocks - 1", "blocks - 2"),
    "the second call finds no last block": (BLOCK, "if (last) *arrived = 0;", ""),
    "x read before it is there": ("decode.cuh", "    wait_for_dependency();\n    int stage = 0;", "    int stage = 0;"),
    "one row for all": ("norm.cu", "row, floats);", "row, floats); if (false)"),
    "rows of one block run into one another": ("norm.cu", "      __syncthreads();", ""),
    "the second half of the threads left out": (ROW, "kParts = kNormThreads / Threads;", "kParts = 1;"),
    "its warps' sums over the first half's": (ROW, "sums[thread / 32] = sum", "sums[threadIdx.x / 32] = sum"),
    "a thread's parts in one sum": (ROW, "float sum = 0.0f;", "float sum = part ? sums[threadIdx.x / 32] : 0.0f;"),
    "h of the first half for both": (ROW, "load(raw_h[part][i].values(), h);", "load(raw_h[0][i].values(), h);"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(sources: Path, bug: str) -> None:
    def passes(op: Path) -> bool:
        return all(is_its_parts(op, shape) for shape in (SHAPES[1], SHAPES[2], SHAPES[3]))

    assert is_caught(sources / "int4_linear", *BUGS[bug], passes)


def test_only_what_fits_is_joined() -> None:
    for k in (17408, 6144):
        assert can_join(Shape(1, 8, 5120, k)) and can_join(Shape(1, 1, 5120, k, 32))
    assert not can_join(Shape(1, 9, 5120, 17408)) and not can_join(Shape(1, 1, 256, 256))
    assert not can_join(Shape(1, 1, 8200, 5120)) and not can_join(Shape(1, 1, 516, 1024))
    with pytest.raises(BuildError, match="up to 8 tokens"):
        linear_norm(Shape(1, 9, 5120, 17408), "bf16", EPSILON, {})
