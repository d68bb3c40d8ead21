"""The LM head against float64 and a full sort, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import lm_head
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.dtypes import cast
from deltart.plugins.kernel_call import Call, addresses, kernel_of
from deltart.plugins.lm_head import inputs, launch
from deltart.plugins.lm_head.inputs import Shape
from deltart.plugins.lm_head.op import FP8_LM_HEAD, LM_HEAD
from deltart.plugins.lm_head.reference import GROUP, STEPS, best, dequantized, quantize
from deltart.plugins.spec import OpSpec
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
        weight = dequantized(given["weight"], given["weight_scale"])
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


@pytest.mark.parametrize("spec", [LM_HEAD, FP8_LM_HEAD], ids=lambda spec: spec.name)
@pytest.mark.parametrize("rows", [1, 11])
def test_the_ops_are_logits_alone(rows: int, spec: OpSpec) -> None:
    shape = Shape(rows, 400, 208, 400, weight_dtype="bf16" if spec is LM_HEAD else "e4m3")
    given, found = inputs.make(shape, 0), inputs.outputs(shape)["logits"]
    arrays = [given["x"][None], *(given[tensor.name] for tensor in spec.inputs[1:])]
    at = addresses(spec, [array.ctypes.data for array in arrays], [found.ctypes.data])
    kinds = {"bfloat16": "bf16", "float8_e4m3fn": "i8"}
    dtypes = {tensor.name: kinds[str(array.dtype)] for tensor, array in zip(spec.inputs, arrays, strict=True)}
    call = Call(spec.bind_axes([array.shape for array in arrays], {}), dtypes, at)
    source, launches = kernel_of(spec).launches(call)
    compile_cpu(FOLDER / source).run(launches)
    (expected,) = spec.reference(*(array.astype(np.float64) for array in arrays))
    assert relative_rms(found, expected[0]) <= TOLERANCE["f32"]
    assert (found == run(module(), shape, given)["logits"]).all()
    odd = {name: "f32" if name.startswith("weight") else kind for name, kind in dtypes.items()}
    with pytest.raises(BuildError, match="stored as f32"):
        kernel_of(spec).launches(replace(call, dtypes=odd))


@pytest.mark.parametrize("k", [2048, 5120])
def test_the_models_widths(k: int) -> None:
    for dtype, weight_dtype in (("bf16", "e4m3"), ("f32", "e4m3"), ("bf16", "bf16")):
        assert check(module(), Shape(1, 260, k, 250, 2, 0, dtype, weight_dtype), k)


def quantized(weight: np.ndarray, folder: Path = FOLDER, order: int = FORWARD) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales by the kernel, in two launches of different sizes, as a load takes the weight in pieces."""
    rows, k = weight.shape
    codes = np.full(weight.shape, 0xFF, np.uint8).view(ml_dtypes.float8_e4m3fn)
    scale = np.full((rows, -(-k // GROUP)), np.nan, ml_dtypes.bfloat16)
    for begin, end in ((0, rows // 3), (rows // 3, rows)):
        parts = {"weight": weight, "codes": codes, "scale": scale}
        at = {name: array[begin:].ctypes.data for name, array in parts.items()}
        compile_cpu(folder / "quantize.cu").run([launch.quantize(end - begin, k, at)], order)
    return codes, scale


def quantizes(folder: Path, k: int = 336) -> bool:
    """The codes are ml_dtypes' of the quotients by the scales found, and no scale that is tried errs less."""
    rng = np.random.default_rng(k)
    rows = rng.standard_t(4, (24, k)) * np.exp2(rng.integers(-20, 20, (24, 1)))
    rows[3, :130], rows[5, 7] = 0, 0
    weight = cast(rows, "bf16")
    codes, scale = quantized(weight, folder)
    wide, found = weight.astype(np.float32), np.repeat(scale.astype(np.float32), GROUP, 1)[:, :k]
    right = np.clip(wide / found, -448, 448).astype(ml_dtypes.float8_e4m3fn)

    def errors(made: np.ndarray) -> np.ndarray:
        groups = np.pad(np.square(made - wide.astype(np.float64)), ((0, 0), (0, -k % GROUP))).reshape(24, -1, GROUP)
        return groups.sum(-1)

    off = errors(dequantized(codes, scale))
    amax = np.pad(np.abs(wide), ((0, 0), (0, -k % GROUP))).reshape(24, -1, GROUP).max(-1)
    others = [cast(amax / 448 * ((STEPS + step) / STEPS), "bf16") for step in range(STEPS)]
    tried = [np.repeat(np.where(amax > 0, one.astype(np.float32), 1), GROUP, 1)[:, :k] for one in others]
    least = [errors(np.clip(wide / s, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * s) for s in tried]
    return bool((codes.view(np.uint8) == right.view(np.uint8)).all() and (off <= np.min(least, 0) * (1 + 1e-5)).all())


@pytest.mark.parametrize("k", [16, 128, 336])
def test_a_head_is_quantized(k: int) -> None:
    assert quantizes(FOLDER, k)


def test_the_reference_quantizes_alike() -> None:
    weight = inputs.make(Shape(vocabulary=300, k=208), 4)["weight"]
    for order in (FORWARD, REVERSE):
        for found, right in zip(quantized(weight, order=order), quantize(weight), strict=True):
            assert (found == right).all()


def test_groups_that_are_no_numbers_stay_none() -> None:
    weight = cast(np.random.default_rng(0).standard_normal((4, 256)), "bf16")
    weight[1, 5], weight[2, 200], weight[3, 0] = np.nan, np.inf, -np.inf
    _, scale = quantized(weight)
    assert np.isnan(scale.astype(np.float32)).tolist() == [[False] * 2, [True, False], [False, True], [True, False]]
    assert (np.isnan(quantize(weight)[1].astype(np.float32)) == np.isnan(scale.astype(np.float32))).all()
