"""Consecutive calls with drafts on the CPU shim, against an oracle that is fed the committed tokens alone."""

from __future__ import annotations

import numpy as np

from deltart.plugins.causal_conv1d import inputs as conv_inputs
from deltart.plugins.causal_conv1d import launch as conv_launch
from deltart.plugins.cpu_shim.runner import CpuModule
from deltart.plugins.gated_delta_rule import inputs, launch, reference
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.tolerance import TOLERANCE, relative_rms
from support import gdr_on_shim as shim


def counts(rng: np.random.Generator, slots: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_tokens, n_commit) of each row: anything from none to all."""
    n = rng.integers(0, tokens + 1, slots).astype(np.int32)
    return n, rng.integers(0, n + 1).astype(np.int32)


def worst_errors(
    kernels: CpuModule, shape: Shape, steps: int, seed: int = 0, tiles: launch.Tiling | None = None
) -> tuple[float, float]:
    """The largest relative RMS errors of o and of the state over `steps` calls of the delta rule's decode kernel."""
    rng, state = np.random.default_rng(seed), inputs.make(shape, seed)["S"]
    oracle, worst = state.astype(np.float64), (0.0, 0.0)
    for step in range(steps):
        n, commit = counts(rng, shape.slots, shape.tokens)
        given = inputs.make(shape, seed + 1 + step, 0.99 if step % 2 else 0.0, n, commit) | {"S": state}
        fed = inputs.tokens(shape, given)
        expected = reference.recur(fed, oracle)[0].reshape(shape.slots, shape.tokens, -1)
        oracle = reference.recur(fed.first(commit), oracle)[1]
        o = shim.decode(kernels, shape, given, tiles=tiles)
        live = np.arange(shape.tokens)[None] < n[:, None]
        error = relative_rms(o[live], expected[live]) if live.any() else 0.0
        worst = (max(worst[0], error), max(worst[1], relative_rms(state, oracle)))
    return worst


def convolution_holds(kernels: CpuModule, dtype: str, steps: int = 50) -> bool:
    """Whether `steps` calls of the convolution keep exactly the inputs that were committed, kept here in full."""
    shape, rng = conv_inputs.Shape(slots=3, tokens=20, channels=64, dtype=dtype), np.random.default_rng(0)
    given = conv_inputs.make(shape, 0)
    state, weight = given["state"], given["weight"]
    history = [list(row.astype(np.float64)) for row in state]
    for step in range(steps):
        _, commit = counts(rng, shape.slots, shape.tokens)
        given = conv_inputs.make(shape, step + 1, commit) | {"state": state, "weight": weight}
        past = np.stack([row[-3:] for row in history])
        expected, found = conv_inputs.expected(given | {"state": past})[0], conv_inputs.outputs(shape)
        kernels.run([conv_launch.forward(shape, shim.addresses(given, found))])
        for row, count, fed in zip(history, commit, given["x"], strict=True):
            row += list(fed[:count].astype(np.float64))
        committed = np.stack([row[-3:] for row in history])
        if relative_rms(found["y"], expected) > TOLERANCE[dtype] or not np.array_equal(state.astype(float), committed):
            return False
    return True
