"""The routed experts with the norm behind them: their parts to the bit, whatever order their blocks' warps end in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import test_moe_experts as experts
from test_planted_bugs_linear import sources

from deltart.errors import BuildError
from deltart.plugins import residual_rms_norm
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, compile_cpu
from deltart.plugins.kernel_call import Call, kernel_of
from deltart.plugins.moe_experts import inputs, launch
from deltart.plugins.moe_experts.cases import EPSILON, joined_outputs, make_joined
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.norm import can_join, experts_norm, workspace
from deltart.plugins.moe_experts.op import (
    FP8_MOE_EXPERTS_NORM,
    FP8_SPARSE_MOE_NORM,
    MOE_EXPERTS_NORM,
    SPARSE_MOE_NORM,
)
from deltart.plugins.residual_rms_norm.inputs import Shape as NormShape
from deltart.plugins.residual_rms_norm.launch import norm
from deltart.plugins.spec import OpSpec
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.planted import is_caught

__all__ = ["sources"]  # the fixture

NORM = Path(residual_rms_norm.__file__).parent
Arrays = dict[str, np.ndarray]
Sized = tuple[Shape, list[int]]
# As many threads as the norm, and more; one token, several, and some that are not there.
SIZES: list[Sized] = [
    (replace(experts.SMALL, tokens=1), [1]),
    (replace(experts.SMALL, slots=2, tokens=4, hidden=272, experts=12, chosen=8, width=144), [4, 1]),
    (replace(experts.SMALL, slots=3, tokens=2, hidden=144, experts=40, chosen=12, present=31), [2, 0, 1]),
]
WIDE: list[Sized] = [
    (replace(experts.SMALL, hidden=8192, chosen=2, width=16, shared=16), [1]),  # all of a thread's vectors
    (replace(experts.SMALL, slots=2, hidden=4096, experts=16, chosen=8, width=32, dtype="f32"), [1, 1]),
]
KINDS = list(product(("f32", "bf16"), ("e4m3", "bf16"), (True, False)))


def of_kind(size: Sized, dtype: str, stored: str, has_shared: bool) -> Sized:
    shape, counts = size
    present = shape.present if stored == "e4m3" else 0
    shared = shape.shared if has_shared else 0
    return replace(shape, dtype=dtype, stored=stored, shared=shared, present=present), counts


def made(shape: Shape, n_tokens: list[int], norm_dtype: str = "bf16") -> Arrays:
    """The inputs, results and scratch."""
    return make_joined(shape, 0, n_tokens, norm_dtype) | joined_outputs(shape)


def at(arrays: Arrays) -> dict[str, int]:
    return {name: array.ctypes.data for name, array in arrays.items()}


def joined(size: Sized, order: int = FORWARD, folder: Path = experts.FOLDER, norm_dtype: str = "bf16") -> Arrays:
    """What a second call leaves: the count of blocks is as the first one found it. Until a thread has waited for what
    ran before, it sees nothing but the weights."""
    arrays, kernels = made(*size, norm_dtype), compile_cpu(folder / "decode.cu")
    held = ("x", "logits", "n_tokens", "residual", "arrived", "normed", "sum", *workspace(size[0]))
    kernels.hold([(arrays[name].ctypes.data, arrays[name].nbytes) for name in held])
    try:
        for _ in range(2):
            kernels.run(experts_norm(size[0], norm_dtype, EPSILON, at(arrays)), order)
    finally:
        kernels.hold([])  # of all modules of the process
    return arrays


def apart(size: Sized, norm_dtype: str = "bf16") -> Arrays:
    """The experts and the norm as launches of their own."""
    shape, arrays = size[0], made(*size, norm_dtype)
    compile_cpu(experts.FOLDER / "decode.cu").run(launch.experts(shape, at(arrays)))
    names = {"x": "y", "h": "residual", "weight": "norm_weight", "y": "normed", "sum": "sum"}
    places = {name: arrays[array].ctypes.data for name, array in names.items()}
    other = NormShape(shape.rows, shape.hidden, shape.dtype, norm_dtype, EPSILON)
    compile_cpu(NORM / "kernel.cu").run([norm(other, places)])
    return arrays


def is_its_parts(size: Sized, folder: Path = experts.FOLDER, norm_dtype: str = "bf16") -> bool:
    """Row by row the sums are the experts' and the norm's own: a plan may join them in one phase, not in another."""
    expected = apart(size, norm_dtype)
    for order in (FORWARD, REVERSE):
        found = joined(size, order, folder, norm_dtype)
        if found["arrived"][0] or any(found[name].tobytes() != expected[name].tobytes() for name in ("sum", "normed")):
            return False
    return bool(np.isfinite(expected["normed"].astype(np.float32)).all())


@pytest.mark.parametrize(("dtype", "stored", "has_shared"), KINDS)
def test_it_is_its_parts_to_the_bit(dtype: str, stored: str, has_shared: bool) -> None:
    for size in SIZES:
        assert is_its_parts(of_kind(size, dtype, stored, has_shared)), size


@pytest.mark.parametrize("size", WIDE, ids=str)
@pytest.mark.parametrize("norm_dtype", ["f32", "bf16"])
def test_wide_rows(size: Sized, norm_dtype: str) -> None:
    assert is_its_parts(size, norm_dtype=norm_dtype)


def test_a_token_that_is_not_there_is_its_residual() -> None:
    found = joined(SIZES[1])
    assert found["sum"][1, 1:].tobytes() == found["residual"][1, 1:].tobytes()


def call_of(spec: OpSpec, arrays: Arrays, shape: Shape) -> Call:
    """As a plan makes it: the scratch is one workspace."""
    given = {"num_experts_per_tok": shape.chosen, "hidden_size": shape.hidden, "intermediate_size": shape.width}
    sizes = spec.bind_axes([arrays[t.name].shape for t in spec.inputs], given | {"epsilon": EPSILON})
    kinds = {"bfloat16": "bf16", "float32": "f32", "int32": "i32", "float8_e4m3fn": "i8"}
    dtypes = {t.name: kinds[str(arrays[t.name].dtype)] for t in spec.inputs}
    names = [t.name for t in (*spec.inputs, *spec.outputs)]
    return Call(sizes, dtypes, {name: arrays[name].ctypes.data for name in names})


@pytest.mark.parametrize(
    ("spec", "stored", "has_shared"),
    [
        (MOE_EXPERTS_NORM, "bf16", False),
        (FP8_MOE_EXPERTS_NORM, "e4m3", False),
        (SPARSE_MOE_NORM, "bf16", True),
        (FP8_SPARSE_MOE_NORM, "e4m3", True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_op_against_its_reference(spec: OpSpec, stored: str, has_shared: bool) -> None:
    for dtype in ("f32", "bf16"):
        shape, counts = of_kind(SIZES[1], dtype, stored, has_shared)
        arrays, kernel = made(shape, counts), kernel_of(spec)
        call = call_of(spec, arrays, shape)
        work = np.full(kernel.workspace_bytes(call) + launch.ALIGNMENT, 0xFF, np.uint8)
        call.at["workspace"] = -(-work.ctypes.data // launch.ALIGNMENT) * launch.ALIGNMENT
        source, launches = kernel.launches(call)
        assert len(launches) == 3
        compile_cpu(kernel.folder / source).run(launches)
        assert (work[call.at["workspace"] - work.ctypes.data + kernel.workspace_bytes(call) :] == 0xFF).all()
        integers = ("n_tokens", "slot_expert", "arrived")
        given = [arrays[t.name] if t.name in integers else arrays[t.name].astype(np.float64) for t in spec.inputs]
        sizes = {name: call.sizes[name] for name in spec.attributes}
        for name, expected in zip(("normed", "sum"), spec.reference(*given, **sizes), strict=True):
            assert relative_rms(arrays[name], expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_row_is_the_same_whatever_rows_share_the_call(slots: int) -> None:
    shape = replace(SIZES[1][0], slots=8, tokens=1)
    together, alone = made(shape, [1] * 8), made(replace(shape, slots=slots), [1] * slots)
    alone |= {name: array for name, array in together.items() if name in inputs.make(shape, 0) or name == "norm_weight"}
    alone |= {name: together[name][:slots].copy() for name in ("x", "logits", "n_tokens", "residual")}
    for arrays, one in ((together, shape), (alone, replace(shape, slots=slots))):
        compile_cpu(experts.FOLDER / "decode.cu").run(experts_norm(one, "bf16", EPSILON, at(arrays)))
    for name in ("sum", "normed"):
        assert alone[name].tobytes() == together[name][:slots].tobytes()


def is_itself_in_place(folder: Path = experts.FOLDER) -> bool:
    """The sum over the residual: of rows so wide that the norm's threads take several vectors, in a block of more."""
    shape = replace(experts.SMALL, hidden=4096, experts=12, chosen=8, width=16, shared=16)
    arrays, expected = made(shape, [1]), apart((shape, [1]))
    places = at(arrays) | {"sum": arrays["residual"].ctypes.data}
    compile_cpu(folder / "decode.cu").run(experts_norm(shape, "bf16", EPSILON, places))
    pairs = (("residual", "sum"), ("normed", "normed"))
    return all(arrays[mine].tobytes() == expected[theirs].tobytes() for mine, theirs in pairs)


def test_the_sum_may_lie_over_the_residual() -> None:
    assert is_itself_in_place()


KERNEL, LAST = "decode.cu", "../common/last_block.cuh"
ENDS = "float epsilon, int* arrived) {        \\\n"
WAITS = f"    begin_dependent();{' ' * 99}\\\n"
BUGS = {
    "works before the last block is done": (LAST, "blocks - 1", "blocks - 2"),
    "the second call finds no last block": (LAST, "if (last) *arrived = 0;", ""),
    "experts read before they are there": (KERNEL, ENDS + WAITS, ENDS),
    "one row for all": (KERNEL, "row, floats);", "row, floats); if (false)"),  # its sums are the next one's too
    "rows of one block run into one another": (KERNEL, "      __syncthreads();      ", "                            "),
    "threads beyond the norm's take a part": (KERNEL, "threadIdx.x < kNormThreads ? H : 0", "H"),
    "a row too few": (KERNEL, "row < rows; ++row", "row < rows - 1; ++row"),
    "the residual twice": (KERNEL, "Norm<Act>{y, residual,", "Norm<Act>{residual, residual,"),
}


def bugs_seen(folder: Path) -> bool:
    return all(is_its_parts(size, folder) for size in SIZES[1:]) and is_itself_in_place(folder)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(sources: Path, bug: str) -> None:
    assert is_caught(sources / experts.FOLDER.name, *BUGS[bug], bugs_seen)


@pytest.mark.slow
def test_an_unbroken_copy_passes(sources: Path) -> None:
    assert bugs_seen(sources / experts.FOLDER.name)


def test_the_lines_to_break_are_there() -> None:
    assert all((experts.FOLDER / name).read_text().count(right) == 1 for name, right, _ in BUGS.values())


@pytest.mark.parametrize(
    "shape",
    [Shape(tokens=8), Shape(slots=8), Shape(shared=0), Shape(chosen=1, shared=0), Shape(hidden=8192)],
    ids=str,
)
def test_what_fits_is_joined(shape: Shape) -> None:
    """Down has the norm's threads, or more, in the memory that every GPU gives a block."""
    assert can_join(shape)
    down = experts_norm(shape, "bf16", EPSILON, defaultdict(int))[-1]
    assert down.block == 32 * min(10, max(8, shape.choices)) and down.shared_bytes <= 99 << 10


@pytest.mark.parametrize(
    "shape",
    [Shape(tokens=9), Shape(slots=9), Shape(hidden=8208), Shape(tokens=8, chosen=60), Shape(quantized=True)],
    ids=str,
)
def test_what_does_not_fit_is_refused(shape: Shape) -> None:
    assert not can_join(shape)
    with pytest.raises(BuildError, match="up to 8 tokens"):
        experts_norm(shape, "bf16", EPSILON, {})
