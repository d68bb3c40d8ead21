"""No kernel reads or writes outside its arrays: each array lies against a page that cannot be touched."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest
import test_causal_conv1d as conv
import test_conv_delta_norm as fused

from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.causal_conv1d import launch as conv_launch
from deltart.plugins.gated_delta_rule import inputs, launch
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.gated_delta_rule.norm import Norm, conv_decode_norm, decode_norm
from support import gdr_on_shim as shim

ALIGNMENT = 16
Place = Callable[[dict[str, np.ndarray]], dict[str, int]]
LIBC = ctypes.CDLL(None)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def against_a_guard(array: np.ndarray, behind: bool, alive: list[mmap.mmap]) -> int:
    """Copies the array so that it starts right after, or ends right before, a page without access."""
    page, pages = mmap.PAGESIZE, -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * page)
    alive.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (base, base + (pages + 1) * page):
        assert LIBC.mprotect(guard, page, 0) == 0
    at = base + page + ((pages * page - array.nbytes) // ALIGNMENT * ALIGNMENT if behind else 0)
    ctypes.memmove(at, array.ctypes.data, array.nbytes)
    return at


def decode(place: Place) -> None:
    for tokens in (1, 5):
        shape = Shape(slots=3, tokens=tokens, key_heads=1, value_heads=3)
        given = inputs.make(shape, 0, 0.5, np.array([tokens, 0, 1]), np.array([tokens // 2, 0, 1]))
        shim.module("decode").run([launch.decode(shape, place(given | inputs.outputs(shape)))])


def decode_joined(place: Place) -> None:
    """With the norm behind it, and with the convolution in front as well."""
    for tokens in (1, 5):
        shape = Shape(slots=3, tokens=tokens, key_heads=1, value_heads=3)
        arrays = fused.made(shape, Norm()) | {"qkv": inputs.make(shape, 0)["qkv"]}
        shim.module("norm").run([decode_norm(shape, Norm(), place(arrays))])
        shim.module("conv").run([conv_decode_norm(shape, Norm(), "bf16", place(arrays))])


def prefill(place: Place) -> None:
    for tokens, chunk in ((1, 64), (65, 64), (150, 32)):
        shape = Shape(slots=3, tokens=tokens, key_heads=1, value_heads=3)
        plan = launch.chunking(shape, chunk=chunk, segment=64)
        given = inputs.make(shape, 0, 0.5, np.array([tokens, 0, 1])) | inputs.outputs(shape)
        at = place(given | {"workspace": np.zeros(plan.workspace_bytes(), np.uint8)})
        shim.module("prefill").run(launch.prefill(plan, at))


def convolve(place: Place) -> None:
    for tokens in (1, 5, 40):
        shape = conv_inputs.Shape(3, tokens, 72)
        given = conv_inputs.make(shape, 0, np.array([tokens, 0, 1])) | conv_inputs.outputs(shape)
        conv.module().run([conv_launch.forward(shape, place(given))])


def overrun(place: Place) -> None:
    shape = conv_inputs.Shape(1, 4, 1024)
    given = conv_inputs.make(shape, 0) | conv_inputs.outputs(shape)
    conv.module().run([conv_launch.forward(conv_inputs.Shape(1, 5, 1024), place(given))])


def exit_code(run: Callable[[Place], None], behind: bool) -> int | None:
    """How a process ends that makes the calls on guarded arrays."""
    alive: list[mmap.mmap] = []

    def place(arrays: dict[str, np.ndarray]) -> dict[str, int]:
        return {name: against_a_guard(array, behind, alive) for name, array in arrays.items()}

    def quietly() -> None:
        faulthandler.disable()  # a crash is one of the answers here
        run(place)

    process = multiprocessing.get_context("fork").Process(target=quietly)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("run", [decode, decode_joined, prefill, convolve])
def test_stays_inside(run: Callable[[Place], None], behind: bool) -> None:
    assert exit_code(run, behind) == 0


def test_an_overrun_is_caught() -> None:
    assert exit_code(overrun, behind=True) == -11
