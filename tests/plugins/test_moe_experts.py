"""The routed experts against their float64 reference, on the CPU shim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import deltart.plugins.moe_experts
from deltart.errors import BuildError
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, CpuModule, compile_cpu
from deltart.plugins.fp8_linear.reference import dequantize
from deltart.plugins.kernel_call import Call, kernel_of
from deltart.plugins.moe_experts import inputs, launch, prefill
from deltart.plugins.moe_experts.cases import W8A8_TOLERANCE, reference
from deltart.plugins.moe_experts.inputs import Shape
from deltart.plugins.moe_experts.op import FP8_SPARSE_MOE
from deltart.plugins.moe_experts.reference import rounded, route
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(deltart.plugins.moe_experts.__file__).parent
SMALL = Shape(hidden=128, experts=7, chosen=3, width=80, shared=48)
Arrays = dict[str, np.ndarray]


ANY, HOPPER = 0, 90  # compute capabilities, times ten
BLOCKS = 3  # of threads, to take the tiles of sm_90a in turn: fewer than there are tiles


def module(shape: Shape, folder: Path = FOLDER, capability: int = ANY) -> CpuModule:
    return compile_cpu(folder / launch.source(shape, capability))


def run(shape: Shape, given: Arrays, order: int = FORWARD, folder: Path = FOLDER, capability: int = ANY) -> Arrays:
    """y, and the scratch arrays that the launches leave."""
    found = inputs.outputs(shape)
    found |= {name: np.full(size, 0xFF, np.uint8) for name, size in launch.workspace(shape).items()}
    at = {name: array.ctypes.data for name, array in (given | found).items()}
    module(shape, folder, capability).run(launch.experts(shape, at, capability, BLOCKS), order)
    return found


def check(
    shape: Shape,
    n_tokens: list[int] | None = None,
    seed: int = 0,
    order: int = FORWARD,
    folder: Path = FOLDER,
    capability: int = ANY,
) -> bool:
    given = inputs.make(shape, seed, n_tokens)
    tolerance = W8A8_TOLERANCE if shape.quantized else TOLERANCE[shape.dtype]
    return relative_rms(run(shape, given, order, folder, capability)["y"], reference(shape, given)) <= tolerance


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


def by_parts(
    shape: Shape,
    n_tokens: list[int] | None = None,
    order: int = FORWARD,
    folder: Path = FOLDER,
    capability: int = ANY,
) -> bool:
    """W8A8, each product against the codes that it reads: h by the codes of x, y by those of the h that was found."""
    given = inputs.make(shape, 5, n_tokens)
    found = run(shape, given, order, folder, capability)
    wide = {name: array.astype(np.float64) for name, array in given.items()}
    slot, weight = (found[name].view(kind).reshape(shape.rows, -1) for name, kind in (("slot", "i4"), ("weight", "f4")))
    position = found["position"].view(np.int32).reshape(slot.shape)
    h = found["h"].view(ml_dtypes.bfloat16).reshape(shape.places, shape.stride).astype(np.float64)
    x, y = wide["x"].reshape(shape.rows, -1), np.zeros((shape.rows, shape.hidden))
    errors = [0.0]
    for token, place in np.argwhere(slot >= 0):
        gate, up, down = matrices(shape, wide, slot[token, place])
        taken, mine = rounded(x[token][None]), h[position[token, place]][None, : len(gate)]
        opened = taken @ gate.T
        errors.append(relative_rms(mine, opened / (1 + np.exp(-opened)) * (taken @ up.T)))
        y[token] += weight[token, place] * (rounded(mine) @ down.T)[0]
    return max(errors) <= TOLERANCE["bf16"] and relative_rms(found["y"].reshape(y.shape), y) <= TOLERANCE["bf16"]


def matrices(shape: Shape, wide: Arrays, slot: int) -> tuple[np.ndarray, ...]:
    """Gate, up and down of a slot, the shared expert's of the last."""
    if slot == shape.stored_experts:
        return tuple(dequantize(wide[f"shared_{p}"], wide[f"shared_{p}_scale_inv"]) for p in ("gate", "up", "down"))
    across, blocks = (shape.width, shape.hidden), (-(-shape.width // 128), -(-shape.hidden // 128))
    parts = ((1, across, blocks), (2, across, blocks), (0, across[::-1], blocks[::-1]))
    values, scales = wide["experts"][slot], wide["experts_scale"][slot]
    return tuple(dequantize(values[p].reshape(size), scales[p].reshape(count)) for p, size, count in parts)


@pytest.mark.parametrize("capability", [ANY, HOPPER])
@pytest.mark.parametrize("shared", [0, 48, 160])
def test_quantized_activations(shared: int, capability: int) -> None:
    """With one slot's tokens in part, and widths that are no multiples of 128."""
    shape = replace(SMALL, slots=3, tokens=25, hidden=208, width=144, shared=shared, present=5, quantized=True)
    assert by_parts(shape, [25, 0, 7], capability=capability)
    assert check(replace(shape, tokens=2), seed=1, capability=capability)  # few tokens take the same kernels
    given = inputs.make(shape, 1)
    exact = reference(replace(shape, quantized=False), given)
    off = relative_rms(run(shape, given, capability=capability)["y"], exact)
    assert 5e-3 < off < 6e-2, off


@pytest.mark.parametrize("tokens", [50, 128, 150])
def test_tiles_of_warpgroups(tokens: int) -> None:
    """An expert of all tokens: half a tile, a whole one, one and a part. K of more blocks than a ring has stages.
    And to the bit in any order of the warps."""
    shape = replace(SMALL, tokens=tokens, hidden=656, width=272, shared=144, experts=4, chosen=2, quantized=True)
    given = inputs.make(shape, 4)
    given["logits"][..., 2] = 10
    assert by_parts(shape, capability=HOPPER)
    first, second = (run(shape, given, order, capability=HOPPER)["y"] for order in (FORWARD, REVERSE))
    assert first.tobytes() == second.tobytes()
    assert relative_rms(first, reference(shape, given)) <= W8A8_TOLERANCE


def test_activations_are_quantized_where_the_gpu_multiplies_them() -> None:
    """sm_100 would widen them first: there the exact kernels run, in the same workspace."""
    shape = replace(SMALL, tokens=70)
    spec, given = FP8_SPARSE_MOE, inputs.make(shape, 0)
    attributes = {"num_experts_per_tok": 3, "hidden_size": 128, "intermediate_size": 80, "quantize_activations": 1}
    sizes = spec.bind_axes([given[t.name].shape for t in spec.inputs], attributes)
    kinds = {"bfloat16": "bf16", "float32": "f32", "int32": "i32", "float8_e4m3fn": "i8"}
    dtypes = {t.name: kinds[str(given[t.name].dtype)] for t in spec.inputs}
    at, kernel = dict.fromkeys([*given, "y", "workspace"], 0), kernel_of(spec)
    for capability, quantizes in ((80, False), (89, True), (90, True), (100, False), (120, True)):
        call = Call(sizes, dtypes, at, capability=capability)
        _, launches = kernel.launches(call)
        assert any(one.kernel == "moe_experts_quantize" for one in launches) == quantizes
        assert any("wgmma" in one.kernel for one in launches) == (capability == HOPPER)
        assert kernel.workspace_bytes(call) == kernel.workspace_bytes(replace(call, capability=0))
        used = replace(shape, quantized=quantizes)
        assert sum(launch.workspace(used).values()) <= kernel.workspace_bytes(call)
    assert not any(
        "quantize" in one.kernel
        for one in kernel.launches(replace(call, sizes={**sizes, "quantize_activations": 0}))[1]
    )
    with pytest.raises(BuildError, match="E4M3 activations of bf16 experts"):
        launch.experts(replace(shape, stored="bf16", quantized=True), {})


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


def orders(order: int = FORWARD, folder: Path = FOLDER) -> bool:
    """Whether the places are those of a stable sort by slot, and the tiles its runs: 1,950 places, some of no slot."""
    shape = Shape(2, 325, 16, experts=40, chosen=2, width=16, shared=16, present=31, quantized=True)
    given = inputs.make(shape, 6, [300, 325])
    found = {name: np.full(size, 0xFF, np.uint8) for name, size in launch.workspace(shape).items()}
    at = {name: array.ctypes.data for name, array in (given | found | inputs.outputs(shape)).items()}
    launches, kernel = launch.experts(shape, at, HOPPER, BLOCKS), prefill.WGMMA
    module(shape, folder, HOPPER).run(launches[:3], order)
    slot, place, position, *tiles = (
        found[name].view(np.int32) for name in ("slot", "place", "position", "tile_slot", "tile_first", "tile_tokens")
    )
    expected = np.argsort(slot, kind="stable")[np.count_nonzero(slot < 0) :]
    where = np.full(shape.places, -1)
    where[expected] = np.arange(len(expected))
    runs = []
    for one in range(shape.stored_experts + 1):
        first, stop = np.searchsorted(slot[expected], [one, one + 1])
        runs += [(one, at, min(kernel.tokens, stop - at)) for at in range(first, stop, kernel.tokens)]
    count = kernel.tiles(shape)
    made = np.stack([array[:count] for array in tiles], axis=1)
    return (
        (place[: len(expected)] == expected).all()
        and (position == where).all()
        and (made[: len(runs)] == runs).all()
        and (made[len(runs) :, 0] == -1).all()
    )


@pytest.mark.parametrize("order", [FORWARD, REVERSE])
def test_places_are_sorted_by_slot(order: int) -> None:
    assert orders(order)


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
