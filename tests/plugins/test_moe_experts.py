"""The routed experts against their float64 reference, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deltart.plugins.moe_experts
from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.moe_experts import inputs, launch
from deltart.plugins.moe_experts.cases import reference
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.reference import route
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(deltart.plugins.moe_experts.__file__).parent
SMALL = Shape(hidden=128, experts=7, chosen=3, width=80, shared=48)
Arrays = dict[str, np.ndarray]


def module(shape: Shape, folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / ("decode.cu" if launch.is_decode(shape) else "prefill.cu"))


def run(shape: Shape, given: Arrays, order: int = FORWARD, folder: Path = FOLDER) -> Arrays:
    """y, and the scratch arrays that the launches leave."""
    found = inputs.outputs(shape)
    found |= {name: np.full(size, 0xFF, np.uint8) for name, size in launch.workspace(shape).items()}
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    module(shape, folder).run(launch.experts(shape, at), order)
    return found


def check(
    shape: Shape, n_tokens: list[int] | None = None, seed: int = 0, order: int = FORWARD, folder: Path = FOLDER
) -> bool:
    given = inputs.make(shape, seed, n_tokens)
    return relative_rms(run(shape, given, order, folder)["y"], reference(shape, given)) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("stored", ["e4m3", "bf16"])
@pytest.mark.parametrize("shared", [0, 48, 160])
def test_few_tokens(shared: int, stored: str, dtype: str) -> None:
    for slots, tokens in ((1, 1), (3, 3), (2, 8), (1, 33)):
        shape = replace(SMALL, slots=slots, tokens=tokens, shared=shared, stored=stored, dtype=dtype)
        assert check(shape), shape


@pytest.mark.parametrize("stored", ["e4m3", "bf16"])
@pytest.mark.parametrize("shared", [0, 48, 160])
def test_many_tokens(shared: int, stored: str) -> None:
    for slots, tokens in ((1, 65), (3, 50)):
        assert check(replace(SMALL, slots=slots, tokens=tokens, shared=shared, stored=stored))


@pytest.mark.parametrize("stored", ["e4m3", "bf16"])
@pytest.mark.parametrize("tokens", [5, 40])
def test_tokens_that_are_not_there_go_nowhere(tokens: int, stored: str) -> None:
    """Their x and logits are NaN, and their y is 0."""
    shape = replace(SMALL, slots=3, tokens=tokens, stored=stored)
    counts = [tokens, 0, 2]
    given = inputs.make(shape, 1, counts)
    y = run(shape, given)["y"].astype(np.float32)
    assert relative_rms(y, reference(shape, given)) <= TOLERANCE["bf16"]
    assert all(not y[slot, count:].any() for slot, count in enumerate(counts))


@pytest.mark.parametrize("tokens", [3, 80])
@pytest.mark.parametrize(
    "sizes",
    [
        dict(experts=5, chosen=1),
        dict(experts=4, chosen=4),
        dict(experts=2, chosen=2, hidden=336, width=656, shared=16),
        dict(experts=256, chosen=8, hidden=32, width=16),
        dict(experts=9, chosen=3, present=4),
        dict(hidden=272, width=144, shared=144, scale_dtype="f32"),
    ],
    ids=lambda sizes: " ".join(f"{name}={value}" for name, value in sizes.items()),
)
def test_sizes(sizes: dict, tokens: int) -> None:
    assert check(replace(SMALL, tokens=tokens, **sizes))


@pytest.mark.parametrize("stored", ["e4m3", "bf16"])
@pytest.mark.parametrize("tokens", [1, 9, 70])
def test_repeats_to_the_bit_in_any_order_of_the_warps(tokens: int, stored: str) -> None:
    shape = replace(SMALL, tokens=tokens, stored=stored)
    given = inputs.make(shape, 3)
    first, second = (run(shape, given, order)["y"] for order in (FORWARD, REVERSE))
    assert first.tobytes() == second.tobytes()


def test_routes_are_those_of_the_reference() -> None:
    """Sets of slots by token, and the weights; equal logits go to the lower expert."""
    shape = replace(SMALL, slots=2, tokens=6, experts=11, chosen=4)
    given = inputs.make(shape, 2)
    found = run(shape, given)
    slot = found["slot"].view(np.int32).reshape(2, 6, 5)
    weight = found["weight"].view(np.float32).reshape(2, 6, 5)
    slot_of = np.argsort(given["slot_expert"])
    for row in np.ndindex(2, 6):
        (chosen,), (expected,) = route(given["logits"][row][None].astype(np.float64), 4)
        assert slot[row][:4].tolist() == slot_of[chosen].tolist() and slot[row][4] == 11
        assert np.abs(weight[row][:4] - expected).max() <= 1e-6
        gate = given["shared_expert_gate"].astype(np.float64) @ given["x"][row].astype(np.float64)
        assert abs(weight[row][4] - 1 / (1 + np.exp(-gate[0]))) <= 1e-6


def test_an_expert_of_all_tokens_and_one_of_none() -> None:
    for tokens in (20, 90):
        shape = replace(SMALL, tokens=tokens, experts=6, chosen=2)
        given = inputs.make(shape, 4)
        given["logits"][..., 2], given["logits"][..., 4] = 10, -10
        assert relative_rms(run(shape, given)["y"], reference(shape, given)) <= TOLERANCE["bf16"]


def test_refuses_what_no_kernel_takes() -> None:
    at = dict.fromkeys([*inputs.make(SMALL, 0), *launch.workspace(SMALL), "y"], 0)
    for shape, words in (
        (replace(SMALL, width=72), "multiples of 16"),
        (replace(SMALL, chosen=8), "1 to all"),
        (replace(SMALL, tokens=65, dtype="f32"), "bf16"),
    ):
        with pytest.raises(BuildError, match=words):
            launch.experts(shape, at)


def test_blocks_fit_the_small_gpus() -> None:
    for tokens, stored in ((64, "e4m3"), (65, "e4m3"), (65, "bf16")):
        shape = replace(SMALL, tokens=tokens, experts=16, chosen=15, stored=stored)
        made = launch.experts(shape, dict.fromkeys([*inputs.make(shape, 0), *launch.workspace(shape), "y"], 0))
        assert max(one.shared_bytes for one in made) <= 99 << 10


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("stored", ["e4m3", "bf16"])
@pytest.mark.parametrize("tokens", [1, 4, 100])
def test_35b_widths(tokens: int, stored: str, dtype: str) -> None:
    """Experts of the real width, fewer of them."""
    if dtype == "bf16" or tokens <= launch.MAX_DECODE_TOKENS:
        assert check(Shape(tokens=tokens, experts=24, stored=stored, dtype=dtype))
