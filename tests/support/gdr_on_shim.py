"""One call of the gated delta rule on the CPU shim, checked against float64: what the tests of its kernels share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deltart.plugins.cpu_shim.runner import FORWARD, CpuModule, compile_cpu
from deltart.plugins.gated_delta_rule import inputs, launch
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(inputs.__file__).resolve().parent


def module(stem: str, *defines: str, folder: Path = FOLDER) -> CpuModule:
    """decode.cu or prefill.cu of the op's folder (or of a patched copy of it), compiled for the host."""
    return compile_cpu(folder / f"{stem}.cu", defines)


def addresses(*groups: dict[str, np.ndarray]) -> dict[str, int]:
    """Where the arrays are, by name."""
    return {name: array.ctypes.data for group in groups for name, array in group.items()}


def decode(
    kernels: CpuModule,
    shape: Shape,
    given: dict[str, np.ndarray],
    order: int = FORWARD,
    tiles: launch.Tiling | None = None,
) -> np.ndarray:
    """Runs the decode kernel; the state in `given` is updated in place. Returns o."""
    found = inputs.outputs(shape)
    kernels.run([launch.decode(shape, addresses(given, found), tiles)], order)
    return found["o"]


def prefill(
    kernels: CpuModule,
    shape: Shape,
    given: dict[str, np.ndarray],
    order: int = FORWARD,
    chunk: int = 64,
    segment: int = 0,
    warps: int = 0,
) -> np.ndarray:
    """Runs the prefill kernels; the state in `given` is updated in place. Returns o."""
    found = inputs.outputs(shape)
    plan = launch.chunking(shape, chunk=chunk, segment=segment, warps=warps)
    workspace = {"workspace": np.full(plan.workspace_bytes(), 0xFF, np.uint8)}
    kernels.run(launch.prefill(plan, addresses(given, found, workspace)), order)
    return found["o"]


def errors(run, shape: Shape, seed: int = 0, correlation: float = 0.99, ragged: bool = True) -> tuple[float, float]:
    """Relative RMS errors of o and of the new state. `run(shape, inputs)` makes the call.

    Outputs of padded tokens must be finite, and the state of an empty row untouched.
    """
    n = inputs.ragged(np.random.default_rng(seed), shape.slots, shape.tokens) if ragged else None
    given = inputs.make(shape, seed, correlation, n)
    before = given["S"].copy()
    expected, state = inputs.expected(shape, given)
    o = run(shape, given)
    n = given["n_tokens"]
    assert np.isfinite(o.astype(np.float32)).all(), "an output was not written"
    np.testing.assert_array_equal(given["S"][n == 0], before[n == 0])
    live = np.arange(shape.tokens)[None] < n[:, None]
    return relative_rms(o[live], expected[live]), relative_rms(given["S"], state)


def within(shape: Shape, found: tuple[float, float]) -> bool:
    """Whether errors of (o, state) keep to the tolerance table."""
    state = TOLERANCE["f32"] if shape.dtype == "f32" else TOLERANCE["state"]
    return found[0] <= TOLERANCE[shape.dtype] and found[1] <= state
