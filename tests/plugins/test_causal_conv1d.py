"""The causal conv1d kernels, on the CPU shim, against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins.causal_conv1d import inputs, launch
from deltart.plugins.causal_conv1d.inputs import Shape
from deltart.plugins.cpu_shim.runner import CpuModule, compile_cpu
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support.gdr_on_shim import addresses

FOLDER = Path(inputs.__file__).resolve().parent
TYPES = pytest.mark.parametrize("dtype", ["f32", "bf16"])


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def check(kernels: CpuModule, shape: Shape, n: np.ndarray) -> bool:
    """Whether one call keeps to the tolerance; the state, which is copied, must be exact."""
    given, found = inputs.make(shape, 0, n), inputs.outputs(shape)
    expected, state = inputs.expected(given)
    kernels.run([launch.forward(shape, addresses(given, found))])
    live = np.arange(shape.tokens)[None] < n[:, None]
    error = relative_rms(found["y"][live], expected[live])
    assert np.isfinite(found["y"].astype(np.float32)).all(), "an output was not written"
    return error <= TOLERANCE[shape.dtype] and np.array_equal(given["state"].astype(np.float64), state)


@TYPES
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 63, 64, 65, 150])
def test_forward(dtype: str, tokens: int) -> None:
    shape = Shape(slots=5, tokens=tokens, channels=1032, dtype=dtype, parameter_dtype=dtype)
    assert check(module(), shape, np.array([tokens, 0, 1, min(2, tokens), tokens // 2], np.int32))


@TYPES
def test_full_size(dtype: str) -> None:
    assert check(module(), Shape(slots=1, tokens=65, dtype=dtype), np.array([65], np.int32))


def verify_steps(kernels: CpuModule, dtype: str, steps: int = 50) -> bool:
    """Random acceptance against the inputs as they were really accepted, kept in full."""
    shape, rng = Shape(slots=3, tokens=4, channels=64, dtype=dtype), np.random.default_rng(0)
    given = inputs.make(shape, 0)
    state, weight = given["state"], given["weight"]
    history = [list(row.astype(np.float64)) for row in state]
    capsules = [{"x": given["x"] * np.nan} for _ in range(2)]
    drafted = np.zeros(shape.slots, np.int32)
    for step in range(steps):
        n_commit = rng.integers(0, drafted + 1).astype(np.int32)
        for row, accepted, drafts in zip(history, n_commit, given["x"], strict=True):
            row += list(drafts[:accepted].astype(np.float64))
        drafted = rng.integers(1, shape.tokens + 1, shape.slots).astype(np.int32)
        given = inputs.make(shape, step + 1, drafted) | {"state": state, "weight": weight}
        committed = np.stack([row[-3:] for row in history])
        expected = inputs.expected(given | {"state": committed})[0]
        found, old, new = inputs.outputs(shape), capsules[step % 2], capsules[1 - step % 2]
        at = addresses(given, found, {"old_x": old["x"], "x_out": new["x"], "n_commit": n_commit})
        kernels.run([launch.verify(shape, shape.tokens, at)])
        live = np.arange(shape.tokens)[None] < drafted[:, None]
        if relative_rms(found["y"][live], expected[live]) > TOLERANCE[dtype]:
            return False
        if not np.array_equal(state.astype(np.float64), committed):
            return False
    return True


@TYPES
def test_fifty_verify_steps(dtype: str) -> None:
    assert verify_steps(module(), dtype)


def test_refuses_odd_channels() -> None:
    with pytest.raises(BuildError, match="1031 channels"):
        launch.forward(Shape(channels=1031), {})
