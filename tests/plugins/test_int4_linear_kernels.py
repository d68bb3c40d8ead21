"""The int4 linears' kernels against their float64 references, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import int4_linear
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear.inputs import SHAPES_27B
from deltart.plugins.fp8_linear.projections import Projection
from deltart.plugins.int4_linear import inputs, launch, prefill, projections
from deltart.plugins.int4_linear.inputs import Shape
from deltart.plugins.int4_linear.reference import dequantize, int4_group_gate_up, int4_group_linear
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(int4_linear.__file__).parent
Arrays = dict[str, np.ndarray]
BEFORE_ROUNDING = 1e-6  # of f32 sums
by_group = pytest.mark.parametrize("group", launch.GROUPS)


def module(name: str = "decode", folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / f"{name}.cu")


def wide(given: Arrays) -> Arrays:
    return {name: a if a.dtype == np.uint8 else a.astype(np.float64) for name, a in given.items()}


def expected(shape: Shape, given: Arrays) -> np.ndarray:
    x, groups, scale = (wide(given)[name] for name in ("x", "weight_groups", "weight_scale"))
    return int4_group_linear(x, groups, scale, shape.k, shape.n, shape.group)[0]


def run(
    kernels: CpuModule, shape: Shape, given: Arrays, order: int = FORWARD, by: launch.Split | None = None
) -> np.ndarray:
    found = inputs.outputs(shape)
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    kernels.run([launch.decode(shape, at, by)], order)
    return found["y"]


def check(kernels: CpuModule, shape: Shape, order: int = FORWARD) -> bool:
    given = inputs.make(shape, 0)
    return relative_rms(run(kernels, shape, given, order), expected(shape, given)) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "slots, tokens",
    [(1, 1), (2, 1), (3, 1), (1, 4), (5, 1), (2, 3), (1, 7), (1, 8), (3, 3), (2, 8), (1, 17), (1, 63), (2, 50)],
)
def test_every_row_count(dtype: str, slots: int, tokens: int) -> None:
    for group in (32, 128):
        assert check(module(), Shape(slots, tokens, n=145, k=1280, group=group, dtype=dtype))


@by_group
@pytest.mark.parametrize("scale_dtype", ["f32", "bf16", "f16"])
def test_sizes_that_are_no_multiples_of_the_stage(group: int, scale_dtype: str) -> None:
    """Odd N, odd numbers of groups: rows' scales begin in the middle of a word, and the last ends there."""
    for n, k in ((1, group), (49, 3 * group), (17, 9 * group), (130, 10 * group)):
        for tokens, order in ((1, FORWARD), (20, REVERSE)):
            assert check(module(), Shape(1, tokens, n, k, group, "f32", scale_dtype), order)


def test_every_nibble_is_exact() -> None:
    shape = Shape(n=16, k=32, group=32, dtype="f32", scale_dtype="f32")
    given = {
        "x": np.zeros((1, 1, 32), np.float32),
        "weight_groups": np.full((16, 1, 16), 0x88, np.uint8),
        "weight_scale": np.ones((16, 1), np.float32),
    }
    for place in range(32):
        nibbles = np.full((16, 32), 8)
        nibbles[:, place] = np.arange(16)
        given["weight_groups"][:, 0] = nibbles[:, ::2] | nibbles[:, 1::2] << 4
        given["x"][...] = 0
        given["x"][0, 0, place] = 1
        assert run(module(), shape, given)[0, 0].tolist() == list(range(-8, 8)), place


def test_every_f16_scale_is_exact() -> None:
    """Each finite number as a scale: a token's one activation that isn't 0 takes the values of its group."""
    shape = Shape(tokens=64, n=1024, k=2048, group=32, dtype="f32", scale_dtype="f16")
    scale = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(1024, 64)
    scale = np.where(np.isfinite(scale), scale, np.float16(0))
    given = {
        "x": np.repeat(np.eye(64, dtype=np.float32), 32, 1)[None] * (np.arange(2048) % 32 == 5).astype(np.float32),
        "weight_groups": np.full((1024, 64, 16), 0xBB, np.uint8),
        "weight_scale": scale,
    }
    assert np.array_equal(run(module(), shape, given)[0].T, 3 * scale.astype(np.float32))


def test_repeats_to_the_bit_in_any_order_of_the_warps() -> None:
    for tokens in (1, 24):
        shape = Shape(tokens=tokens, n=160, k=2560)
        given = inputs.make(shape, 3)
        first, second = (run(module(), shape, given, order) for order in (FORWARD, REVERSE))
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("by", [launch.Split(1, 1, 1), launch.Split(1, 2, 2), launch.Split(4, 1, 4)])
def test_every_split(by: launch.Split) -> None:
    shape = Shape(tokens=11, n=144, k=2304, dtype="f32")
    given = inputs.make(shape, 1)
    assert relative_rms(run(module(), shape, given, by=by), expected(shape, given)) <= TOLERANCE["f32"]


def pair(shape: Shape) -> tuple[Arrays, np.ndarray]:
    """Inputs of a gated pair, and what it is."""
    given = inputs.make(shape, 0)
    given |= {name.replace("weight", "up"): array for name, array in inputs.weight(shape, 1).items()}
    with np.errstate(over="ignore"):
        return given, int4_group_gate_up(*wide(given).values(), shape.group)[0]


def gates(kernels: CpuModule, shape: Shape) -> bool:
    given, right = pair(shape)
    found = inputs.outputs(shape)
    kernels.run([launch.decode_gate_up(shape, {name: a.ctypes.data for name, a in (given | found).items()})])
    return relative_rms(found["y"], right) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("tokens, n, k", [(1, 300, 1056), (8, 48, 384), (13, 129, 416), (40, 272, 2016)])
def test_gate_and_up_in_one(tokens: int, n: int, k: int) -> None:
    for dtype in ("f32", "bf16"):
        assert gates(module(), Shape(1, tokens, n, k, 32, dtype))


def test_logits_are_not_rounded() -> None:
    shape = Shape(2, 3, n=203, k=1280)
    given, found = inputs.make(shape, 0), {"y": np.full((2, 3, 203), np.nan, np.float32)}
    module().run([launch.logits(shape, {name: array.ctypes.data for name, array in (given | found).items()})])
    assert relative_rms(found["y"], expected(shape, given)) <= TOLERANCE["f32"]


def several(shape: Shape, int4: tuple[int, ...], plain: tuple[int, ...]) -> tuple[Arrays, list[Projection]]:
    """x, and a weight of each size."""
    rng, members = np.random.default_rng(shape.rows), []
    given = {"x": inputs.make(shape, 1)["x"]}
    for index, n in enumerate(int4):
        groups, scale = inputs.weight(replace(shape, n=n), index).values()
        given |= {f"w{index}": groups, f"s{index}": scale}
        members.append(Projection(n, f"w{index}", f"y{index}", f"s{index}"))
    for index, n in enumerate(plain, len(int4)):
        given[f"w{index}"] = cast(rng.standard_normal((n, shape.k)), "bf16")
        members.append(Projection(n, f"w{index}", f"y{index}"))
    return given, members


def project(kernels: CpuModule, shape: Shape, given: Arrays, members: list[Projection], order: int = FORWARD) -> Arrays:
    found = {m.y: poisoned((shape.slots, shape.tokens, m.n), shape.dtype) for m in members}
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    kernels.run([projections.decode(shape, members, at)], order)
    return found


def projects(kernels: CpuModule, shape: Shape, int4: tuple[int, ...], plain: tuple[int, ...] = ()) -> bool:
    given, members = several(shape, int4, plain)
    found, all_wide = project(kernels, shape, given, members), wide(given)
    for m in members:
        weight = all_wide[m.weight]
        weight = dequantize(weight, all_wide[m.scale]) if m.scale else weight
        if relative_rms(found[m.y], all_wide["x"] @ weight.T) > TOLERANCE[shape.dtype]:
            return False
    return True


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("slots, tokens", [(1, 1), (2, 4), (1, 13), (2, 32)])
@pytest.mark.parametrize("int4, plain", [((272, 40, 129), ()), ((300, 128), (48, 47)), ((), (33, 8))])
def test_projections(slots: int, tokens: int, dtype: str, int4: tuple[int, ...], plain: tuple[int, ...]) -> None:
    assert projects(module("projections"), Shape(slots, tokens, k=1056, group=32, dtype=dtype), int4, plain)


def test_refuses_more_weights_than_it_takes() -> None:
    given, members = several(Shape(k=64, group=32), (16,) * 4, ())
    with pytest.raises(BuildError, match="4 int4 weights"):
        projections.decode(Shape(k=64, group=32), members, dict.fromkeys([*given, *(m.y for m in members)], 0))


def multiplies_many(kernels: CpuModule, shape: Shape, order: int = FORWARD) -> bool:
    """y against float64, and the parts of a split K before they are rounded."""
    given = inputs.make(shape, 0)
    found = inputs.outputs(shape) | {"partial": np.full(prefill.partial_bytes(shape) // 4, np.nan, np.float32)}
    kernels.run(prefill.prefill(shape, {name: a.ctypes.data for name, a in (given | found).items()}), order)
    want = expected(shape, given)
    parts = found["partial"].astype(np.float64).reshape(-1, *want.shape).sum(0)
    exact = not parts.any() or relative_rms(parts, want) <= BEFORE_ROUNDING
    return exact and relative_rms(found["y"], want) <= TOLERANCE["bf16"]


@pytest.mark.parametrize("tokens, n, k, group", [
    (1, 1, 32, 32), (65, 200, 192, 64), (130, 129, 1056, 32), (300, 256, 384, 128), (128, 128, 768, 256),
    (70, 130, 3200, 128), (257, 129, 2080, 32),
])  # fmt: skip
def test_many_tokens(tokens: int, n: int, k: int, group: int) -> None:
    """The last two split K."""
    for scale_dtype, order in (("bf16", FORWARD), ("f32", REVERSE), ("f16", FORWARD)):
        shape = Shape(1, tokens, n, k, group, scale_dtype=scale_dtype)
        assert (prefill.splits(shape) > 1) == (k > 2000)
        assert multiplies_many(module("prefill"), shape, order)


def test_gate_and_up_of_many_tokens() -> None:
    shape = Shape(1, 70, 136, 416, 32)
    given, right = pair(shape)
    work = {"gate": np.full(prefill.gate_bytes(shape) // 2, 0x7FFF, np.uint16)}
    found = inputs.outputs(shape) | work | {"partial": np.zeros(prefill.partial_bytes(shape), np.uint8)}
    module("prefill").run(prefill.gate_up(shape, {name: a.ctypes.data for name, a in (given | found).items()}))
    assert relative_rms(found["y"], right) <= 2 * TOLERANCE["bf16"]  # the gate is rounded on the way


def test_plans_fill_a_gpu_and_fit_a_block() -> None:
    for n, k in SHAPES_27B.values():
        for tokens in range(1, 65):
            by = launch.split(Shape(tokens=tokens, n=n, k=k))
            assert 8 * by.tiles >= min(tokens, 32) and by.shared_bytes <= 48 << 10 and by.warps <= launch.MAX_WARPS
            assert -(-n // launch.ROWS) * by.parts >= 1024 or by.parts == launch.MAX_WARPS
    assert prefill.KERNEL.shared_bytes <= 99 << 10


@pytest.mark.parametrize("k, group, said", [(96, 64, "a multiple of the group, 64"), (64, 16, "int4 groups of 16")])
def test_refuses_what_no_kernel_takes(k: int, group: int, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        launch.decode(Shape(k=k, group=group), dict.fromkeys(("x", "weight_groups", "weight_scale", "y"), 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES_27B)
def test_27b_shapes(name: str) -> None:
    n, k = SHAPES_27B[name]
    for tokens, group in ((1, 128), (8, 32)):
        shape = Shape(1, tokens, n, k, group, "f32")
        given = inputs.make(shape, tokens)
        rows = np.random.default_rng(0).choice(n, 256, replace=False)
        some = given | {name: given[name][rows] for name in ("weight_groups", "weight_scale")}
        right = expected(replace(shape, n=256), some)
        assert relative_rms(run(module(), shape, given)[..., rows], right) <= TOLERANCE["f32"]
