"""The prefill kernels of the block-FP8 linear against float64, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from test_fp8_linear import FOLDER

from bench.kernels.device import Cuda
from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.fp8_linear import inputs, launch, prefill
from deltart.plugins.fp8_linear.inputs import SHAPES_27B, Shape
from deltart.plugins.fp8_linear.prefill import W8A8, W8A8_WGMMA, W8A16, TileKernel
from deltart.plugins.fp8_linear.reference import dequantize, quantize, scaled
from deltart.plugins.tolerance import TOLERANCE, relative_rms

Arrays = dict[str, np.ndarray]
KERNELS = [W8A16, W8A8, W8A8_WGMMA]
SIZES = [(1, 1, 16), (65, 200, 176), (130, 129, 1040), (300, 256, 384), (128, 128, 128)]
BLOCKS = 3  # of threads, to take the tiles of W8A8_WGMMA in turn: fewer than there are tiles
SAME_ROUNDING = 1e-3  # against the float64 reference rounded to bf16, as y is
BEFORE_ROUNDING = 1e-6  # of f32 sums
by_name = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def module(kernel: TileKernel, folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / kernel.source)


def run(kernels: CpuModule, kernel: TileKernel, shape: Shape, given: Arrays, order: int = FORWARD) -> Arrays:
    work = {name: np.full(size, 0xFF, np.uint8) for name, size in prefill.workspace(shape, kernel).items()}
    found = inputs.outputs(shape) | work
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    plan = prefill.prefill if kernel is W8A16 else prefill.prefill_w8a8
    kernels.run(plan(shape, kernel, at, BLOCKS), order)
    return found


def untiled(shape: Shape, found: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The quantizer's codes [M, K] and scales [M, blocks], out of the tiles and their swizzle."""
    blocks = -(-shape.k // 128)
    tiles = found["codes"].view(ml_dtypes.float8_e4m3fn).reshape(-1, blocks, 128, 8, 16)
    row, piece = np.ogrid[:128, :8]
    codes = tiles[:, :, row, piece ^ row % 8].transpose(0, 2, 1, 3, 4).reshape(len(tiles) * 128, blocks * 128)
    scale = found["x_scale"].view(np.float32).reshape(blocks, -1).T
    assert (codes[shape.rows :].view(np.uint8) == 0).all() and (codes[:, shape.k :].view(np.uint8) == 0).all()
    return codes[: shape.rows, : shape.k], scale[: shape.rows]


def expected(kernel: TileKernel, shape: Shape, given: Arrays) -> np.ndarray:
    """Float64 y [M, N], of the reference's own quantization where the kernel quantizes."""
    x = given["x"].astype(np.float32).reshape(shape.rows, shape.k)
    x = x.astype(np.float64) if kernel is W8A16 else scaled(*quantize(x))
    return x @ dequantize(given["weight"].astype(np.float64), given["weight_scale_inv"].astype(np.float64)).T


def mantissas(exponent: int) -> np.ndarray:
    """x [256, 2048] in bf16: row r has groups of a value of mantissa r at 2^exponent, and in them, at exponents to 15
    lower, all mantissas of either sign."""
    every = (128 + np.arange(128)) / 128 * np.where(np.arange(128) % 2, 1, -1)
    x = np.empty((2, 128, 16, 128))
    for lower in range(16):
        x[:, :, lower] = every * 0.5**lower
    x[1] *= -1
    x[0, :, 0, :], x[1, :, 0, :] = x[0, :, 0, :] / 2, x[1, :, 0, :] / 2
    for half, place in ((0, 0), (1, 127)):  # so that each mantissa is in one of them
        x[half, :, :, place] = (128 + np.arange(128))[:, None] / 128
    return (x.reshape(256, 2048) * 2.0**exponent).astype(ml_dtypes.bfloat16)


def divides(kernels: CpuModule, exponents: tuple[int, ...] = (0,)) -> bool:
    """Whether codes and scales are those of a division."""
    shape = Shape(tokens=256, n=16, k=2048)
    for exponent in exponents:
        x = mantissas(exponent)
        found = {name: np.full(size, 0xFF, np.uint8) for name, size in prefill.quantized_bytes(shape).items()}
        at = dict.fromkeys(("weight", "weight_scale_inv", "y", "partial"), 0)
        at |= {name: array.ctypes.data for name, array in ({"x": x} | found).items()}
        kernels.run(prefill.prefill_w8a8(shape, W8A8, at)[:1])
        (codes, scale), (right, right_scale) = untiled(shape, found), quantize(x.astype(np.float32))
        if not ((codes.view(np.uint8) == right.view(np.uint8)).all() and (scale == right_scale).all()):
            return False
    return True


def test_a_quotient_by_the_inverse_is_a_quotient() -> None:
    """All mantissas of x and of a group's largest, from subnormal bf16 to the largest."""
    assert divides(module(W8A8), (0, -60, -61, -110, -126, 60, 126))


def errors(kernel: TileKernel, shape: Shape, given: Arrays, found: Arrays) -> tuple[float, float, float]:
    """Relative RMS of y against float64, against float64 rounded to bf16, and of the f32 parts of a split K (or 0)."""
    if kernel is not W8A16:
        codes, scale = quantize(given["x"].astype(np.float32).reshape(shape.rows, shape.k))
        mine = untiled(shape, found)
        assert (mine[0].view(np.uint8) == codes.view(np.uint8)).all() and (mine[1] == scale).all()
    want, y = expected(kernel, shape, given), found["y"].reshape(shape.rows, -1)
    before = 0.0
    if "partial" in found:
        parts = found["partial"].view(np.float32).reshape(-1, *y.shape)
        before = relative_rms(parts.astype(np.float64).sum(0), want)
    return relative_rms(y, want), relative_rms(y, want.astype(np.float32).astype(ml_dtypes.bfloat16)), before


def check(kernels: CpuModule, kernel: TileKernel, shape: Shape, order: int = FORWARD) -> bool:
    given = inputs.make(shape, 0)
    plain, rounded, before = errors(kernel, shape, given, run(kernels, kernel, shape, given, order))
    return plain <= TOLERANCE["bf16"] and rounded <= SAME_ROUNDING and before <= BEFORE_ROUNDING


@by_name
@pytest.mark.parametrize("scale_dtype", ["f32", "bf16"])
@pytest.mark.parametrize("tokens, n, k", SIZES)
def test_against_float64(tokens: int, n: int, k: int, scale_dtype: str, kernel: TileKernel) -> None:
    for order in (FORWARD, REVERSE):
        assert check(module(kernel), kernel, Shape(tokens=tokens, n=n, k=k, scale_dtype=scale_dtype), order)


@by_name
@pytest.mark.parametrize("tokens, n, k", [(70, 130, 3200), (257, 129, 2064)])
def test_split_of_k(tokens: int, n: int, k: int, kernel: TileKernel) -> None:
    shape = Shape(tokens=tokens, n=n, k=k)
    assert prefill.splits(shape, kernel) > 1
    for order in (FORWARD, REVERSE):
        assert check(module(kernel), kernel, shape, order)


@pytest.mark.parametrize("kernel", [W8A8, W8A8_WGMMA], ids=lambda kernel: kernel.name)
def test_w8a8_before_rounding(kernel: TileKernel) -> None:
    """Integers that bf16 holds exactly: no rounding of y hides an error, so the result is exact."""
    shape = Shape(tokens=70, n=136, k=256, scale_dtype="f32")
    given = inputs.make(shape, 0)
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, (shape.rows, shape.k)) * 448.0
    given["x"][...] = np.where(rng.random(x.shape) < 0.1, x, 0.0)
    given["weight"][...] = rng.integers(-1, 2, given["weight"].shape)
    given["weight_scale_inv"][...] = 2.0**-6
    assert errors(kernel, shape, given, run(module(kernel), kernel, shape, given))[0] == 0


def test_both_w8a8_kernels_agree() -> None:
    shape = Shape(tokens=130, n=200, k=656)
    given = inputs.make(shape, 0)
    tiles, wgmma = (run(module(kernel), kernel, shape, given)["y"] for kernel in (W8A8, W8A8_WGMMA))
    assert relative_rms(wgmma, tiles) < 1e-4  # sums in other orders, seldom rounded apart


def test_a_zero_group_is_zero() -> None:
    shape = Shape(tokens=3, n=40, k=144)
    given = inputs.make(shape, 0)
    given["x"][0, :, :128] = 0
    given["x"][0, 1] = 0
    for kernel in (W8A8, W8A8_WGMMA):
        found = run(module(kernel), kernel, shape, given)
        assert errors(kernel, shape, given, found)[0] <= TOLERANCE["bf16"]
        assert (found["y"][0, 1] == 0).all()


def test_which_kernel_serves() -> None:
    at = dict.fromkeys(("x", "weight", "weight_scale_inv", "y", "partial"), 0)
    assert launch.forward(Shape(tokens=64), at)[0] == "decode.cu"
    assert launch.forward(Shape(slots=2, tokens=33), at)[0] == "prefill.cu"
    assert launch.forward(Shape(tokens=65, dtype="f32"), at)[0] == "decode.cu"
    assert [prefill.w8a8_kernel(gpu) for gpu in (80, 86, 89, 90, 100, 120)] == [W8A8] * 3 + [W8A8_WGMMA] + [W8A8] * 2
    with pytest.raises(BuildError, match="f32 activations"):
        prefill.prefill(Shape(tokens=65, dtype="f32"), W8A16, at)


def test_shared_memory_fits() -> None:
    assert max(W8A16.shared_bytes, W8A8.shared_bytes) <= 99 << 10  # sm_86, 89 and 120
    assert W8A8_WGMMA.shared_bytes <= 227 << 10


@by_name
def test_splits_are_whole_and_within_the_declared_bytes(kernel: TileKernel) -> None:
    for n, k in {*SHAPES_27B.values(), (129, 272), (5120, 16)}:
        most = 0
        for tokens in (1, 64, 65, 127, 128, 129, 256, 300, 512, 1000, 4096):
            shape = Shape(tokens=tokens, n=n, k=k)
            count, blocks = prefill.splits(shape, kernel), -(-k // 128)
            assert (count - 1) * -(-blocks // count) < blocks
            assert count == 1 or count * kernel.tiles(shape) <= prefill.MAX_ITEMS
            most = max(most, prefill.partial_bytes(shape, kernel))
            assert most <= prefill.max_partial_bytes(shape, kernel.tokens)


@by_name
def test_repeats_to_the_bit(kernel: TileKernel) -> None:
    for shape in (Shape(tokens=70, n=136, k=400), Shape(tokens=70, n=40, k=2064)):
        given = inputs.make(shape, 0)
        first, second = (run(module(kernel), kernel, shape, given, order)["y"] for order in (FORWARD, REVERSE))
        assert first.tobytes() == second.tobytes()


@pytest.mark.slow
@by_name
@pytest.mark.parametrize("n, k", sorted({(min(n, 300), k) for n, k in SHAPES_27B.values()} | {(300, 17296)}))
def test_every_k_of_the_27b_model(n: int, k: int, kernel: TileKernel) -> None:
    """Some rows of each weight, their number no multiple of 128; one K that is none either."""
    shape = Shape(tokens=130, n=n, k=k)
    given = inputs.make(shape, 1)
    first, again = (run(module(kernel), kernel, shape, given, order) for order in (FORWARD, REVERSE))
    plain, rounded, before = errors(kernel, shape, given, first)
    print(f"{kernel.name} N={n} K={k}: {plain:.2e}, same rounding {rounded:.2e}, f32 parts {before:.2e}")
    assert plain <= TOLERANCE["bf16"] and rounded <= SAME_ROUNDING and before <= BEFORE_ROUNDING
    assert first["y"].tobytes() == again["y"].tobytes()


@pytest.mark.slow
@by_name
@pytest.mark.parametrize("n, k", sorted({(n % 128 + 1, k) for n, k in SHAPES_27B.values()}))
def test_unsplit_sums_of_every_k(n: int, k: int, kernel: TileKernel) -> None:
    """A weight so narrow as to be split, and the same call as one part: the order of the sums is all that differs."""
    shape = replace(Shape(tokens=70, n=n, k=k), scale_dtype="f32")
    given = inputs.make(shape, 2)
    split = run(module(kernel), kernel, shape, given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "MAX_SPLITS", 1)
        whole = run(module(kernel), kernel, shape, given)
    assert "partial" in split and "partial" not in whole
    assert errors(kernel, shape, given, whole)[1] <= SAME_ROUNDING
    assert relative_rms(split["y"], whole["y"]) <= SAME_ROUNDING


@pytest.mark.gpu
@by_name
@pytest.mark.parametrize("tokens, n, k", [*SIZES, (257, 129, 2064), (512, 1024, 5120)])
def test_on_the_gpu(tokens: int, n: int, k: int, kernel: TileKernel) -> None:
    """The same arrays on this machine's GPU, twice; W8A8_WGMMA on compute capability 9.0 alone."""
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no CUDA device")
    device = Cuda()
    if kernel is W8A8_WGMMA and device.capability != prefill.HOPPER:
        pytest.skip("wgmma is in sm_90a alone")
    shape, results = Shape(tokens=tokens, n=n, k=k), []
    given = inputs.make(shape, 0)
    work = {name: np.full(size, 0xFF, np.uint8) for name, size in prefill.workspace(shape, kernel).items()}
    plan = prefill.prefill if kernel is W8A16 else prefill.prefill_w8a8
    for _ in range(2):
        buffers = device.place(given | inputs.outputs(shape) | work)
        device.module(FOLDER / kernel.source)(plan(shape, kernel, buffers.at, device.multiprocessors), 0)
        device.synchronize()
        results.append({name: buffers.read(name) for name in ("y", *work)})
    plain, rounded, _ = errors(kernel, shape, given, results[0])
    assert plain <= TOLERANCE["bf16"] and rounded <= SAME_ROUNDING
    assert results[0]["y"].tobytes() == results[1]["y"].tobytes()
