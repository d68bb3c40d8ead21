"""The LM head against float64 and a full sort, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltart.plugins import lm_head
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.fp8_linear.reference import dequantize
from deltart.plugins.lm_head import inputs, launch
from deltart.plugins.lm_head.inputs import Shape
from deltart.plugins.lm_head.reference import best
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(lm_head.__file__).parent
Arrays = dict[str, np.ndarray]


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def run(kernels: CpuModule, shape: Shape, given: Arrays, order: int = FORWARD, logits: bool = True) -> Arrays:
    found = inputs.outputs(shape)
    work = {name: np.full(size, 0xFF, np.uint8) for name, size in launch.workspace(shape).items()}
    at = {name: array.ctypes.data for name, array in (given | found | work).items()}
    if not logits:
        del at["logits"]
    kernels.run(launch.head(shape, at, merge_threads=64), order)
    return found


def ids(shape: Shape, given: Arrays) -> np.ndarray:
    return given.get("ids", np.arange(shape.vocabulary, dtype=np.int32))


def check(kernels: CpuModule, shape: Shape, seed: int = 0) -> bool:
    """The logits are right, and the best tokens are those of a sort of the logits found."""
    given = inputs.make(shape, seed)
    found = run(kernels, shape, given)
    weight = given["weight"].astype(np.float64)
    if shape.weight_dtype == "e4m3":
        weight = dequantize(weight, given["weight_scale_inv"].astype(np.float64))
    expected = given["x"].astype(np.float64) @ weight[ids(shape, given)].T
    kept = best(found["logits"], ids(shape, given), shape.limit, shape.keep)
    return relative_rms(found["logits"], expected) <= TOLERANCE["f32"] and all(
        (mine == right).all() for mine, right in zip((found["best_logits"], found["best_ids"]), kept, strict=True)
    )


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("rows, vocabulary, k", [(1, 256, 2048), (9, 250, 208), (70, 33, 128)])
def test_logits_of_few_rows(rows: int, vocabulary: int, k: int, dtype: str) -> None:
    """As a router asks for them; a row's are the same to the bit whatever rows share the call."""
    shape = Shape(rows, vocabulary, k, vocabulary, dtype=dtype)
    given = inputs.make(shape, 3)
    expected = given["x"].astype(np.float64) @ given["weight"].astype(np.float64).T

    def logits(shape: Shape, given: Arrays, order: int) -> np.ndarray:
        found = inputs.outputs(shape)
        one = launch.logits(shape, {name: array.ctypes.data for name, array in (given | found).items()})
        assert one.kernel.startswith("lm_head_few_")
        module().run([one], order)
        return found["logits"]

    for order in (FORWARD, REVERSE):
        found = logits(shape, given, order)
        assert relative_rms(found, expected) <= TOLERANCE["f32"]
        last = {**given, "x": np.ascontiguousarray(given["x"][-1:])}
        np.testing.assert_array_equal(logits(replace(shape, rows=1), last, order), found[-1:])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("weight_dtype", ["bf16", "e4m3"])
@pytest.mark.parametrize("rows, keep", [(1, 1), (3, 20), (8, 64), (13, 5), (40, 1)])
def test_logits_and_best_tokens(rows: int, keep: int, weight_dtype: str, dtype: str) -> None:
    assert check(module(), Shape(rows, 1000, 208, 963, keep, 0, dtype, weight_dtype))


@pytest.mark.parametrize("weight_dtype", ["bf16", "e4m3"])
def test_a_subset_of_the_vocabulary(weight_dtype: str) -> None:
    for subset in (77, 500):
        assert check(module(), Shape(2, 1500, 144, 1400, 6, subset, "f32", weight_dtype))


def test_the_lower_id_wins_a_tie_and_padding_never_does() -> None:
    shape = Shape(rows=2, vocabulary=700, k=32, limit=690, keep=3)
    given = inputs.make(shape, 0)
    given["weight"][...] = 0
    given["weight"][[695, 500, 333, 40]] = 1
    given["x"][...] = 1
    assert run(module(), shape, given)["best_ids"].tolist() == [[40, 333, 500]] * 2


def test_the_best_tokens_do_not_need_the_logits() -> None:
    shape = Shape(rows=2, vocabulary=400, k=64, limit=400, keep=4)
    given = inputs.make(shape, 0)
    found = [run(module(), shape, given, order, logits) for order, logits in ((FORWARD, True), (REVERSE, False))]
    assert np.isnan(found[1]["logits"]).all()
    assert (found[0]["best_ids"] == found[1]["best_ids"]).all()
    assert (found[0]["best_logits"] == found[1]["best_logits"]).all()


def test_fewer_tokens_than_are_wanted() -> None:
    shape = Shape(vocabulary=20, k=16, limit=3, keep=5)
    found = run(module(), shape, inputs.make(shape, 0))
    assert sorted(found["best_ids"][0, :3]) == [0, 1, 2]
    assert (found["best_ids"][0, 3:] == np.iinfo(np.int32).max).all()


@pytest.mark.parametrize("rows", [1, 11])
def test_logits_alone(rows: int) -> None:
    shape = Shape(rows, 400, 64, 400)
    given, found = inputs.make(shape, 0), inputs.outputs(shape)
    at = {name: array.ctypes.data for name, array in (given | {"logits": found["logits"]}).items()}
    module().run([launch.logits(shape, at)])
    assert (found["logits"] == run(module(), shape, given)["logits"]).all()
