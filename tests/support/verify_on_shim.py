"""Consecutive verify steps on the CPU shim against an oracle that really rolls rejected drafts back."""

from __future__ import annotations

import numpy as np

from deltart.plugins.cpu_shim.runner import CpuModule
from deltart.plugins.gated_delta_rule import inputs, launch, reference
from deltart.plugins.gated_delta_rule.inputs import Shape
from deltart.plugins.tolerance import relative_rms
from support.gdr_on_shim import addresses


def call(
    kernels: CpuModule,
    shape: Shape,
    given: dict[str, np.ndarray],
    old: dict[str, np.ndarray],
    new: dict[str, np.ndarray],
    n_commit: np.ndarray,
    tiles: launch.Tiling | None,
) -> np.ndarray:
    """One verify step: replays n_commit of `old`, fills `new`. Returns o."""
    found = inputs.outputs(shape) | {"n_commit": n_commit}
    at = addresses(given, found, old) | {f"{name}_out": array.ctypes.data for name, array in new.items()}
    kernels.run([launch.verify(shape, shape.tokens, at, tiles)])
    return found["o"]


def worst_errors(
    kernels: CpuModule, shape: Shape, steps: int, seed: int = 0, tiles: launch.Tiling | None = None
) -> tuple[float, float]:
    """The largest relative RMS errors of o and of the committed state over `steps` with random acceptance.

    The oracle keeps the state before each step and reruns the accepted prefix from it, token by token.
    """
    rng = np.random.default_rng(seed)
    capsules = [inputs.capsule(shape, shape.tokens) for _ in range(2)]
    given = inputs.make(shape, seed)
    state, oracle, drafts = given["S"], given["S"].astype(np.float64), None
    drafted = np.zeros(shape.slots, np.int32)
    worst = (0.0, 0.0)
    for step in range(steps):
        n_commit = rng.integers(0, drafted + 1).astype(np.int32)
        if drafts is not None:
            oracle = reference.recur(drafts.first(n_commit), oracle)[1]
        drafted = rng.integers(1, shape.tokens + 1, shape.slots).astype(np.int32)
        given = inputs.make(shape, seed + 1 + step, 0.99 if step % 2 else 0.0, drafted) | {"S": state}
        drafts = inputs.tokens(shape, given)
        expected = reference.recur(drafts, oracle)[0].reshape(shape.slots, shape.tokens, -1)
        o = call(kernels, shape, given, capsules[step % 2], capsules[1 - step % 2], n_commit, tiles)
        live = np.arange(shape.tokens)[None] < drafted[:, None]
        worst = (max(worst[0], relative_rms(o[live], expected[live])), max(worst[1], relative_rms(state, oracle)))
    return worst
