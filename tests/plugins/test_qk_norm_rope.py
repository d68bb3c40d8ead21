"""The normalised, rotated queries and keys against their float64 reference, on the CPU shim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins import qk_norm_rope
from deltart.plugins.cpu_shim.runner import CpuModule, compile_cpu
from deltart.plugins.qk_norm_rope import inputs, launch
from deltart.plugins.qk_norm_rope.inputs import Shape
from deltart.plugins.qk_norm_rope.reference import qk_norm_rope as reference
from deltart.plugins.tolerance import TOLERANCE, relative_rms

FOLDER = Path(qk_norm_rope.__file__).parent


def module(folder: Path = FOLDER) -> CpuModule:
    return compile_cpu(folder / "kernel.cu")


def check(kernels: CpuModule, shape: Shape, seed: int = 0) -> bool:
    """Head by head: the small ones count as much as the large ones."""
    given, found = inputs.make(shape, seed), inputs.outputs(shape)
    kernels.run([launch.rope(shape, {name: array.ctypes.data for name, array in (given | found).items()})])
    wide = [given[name].astype(np.float64) for name in ("q_gate", "k", "q_weight", "k_weight", "cos", "sin")]
    expected = reference(*wide, shape.heads, shape.kv_heads, shape.head_dim, shape.epsilon)
    errors = [
        relative_rms(mine, right)
        for result, want in zip(found.values(), expected, strict=True)
        for mine, right in zip(*(a.reshape(-1, shape.head_dim) for a in (result, want)), strict=True)
    ]
    return max(errors) <= TOLERANCE[shape.dtype]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("parameter_dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "slots, tokens, heads, kv_heads, head_dim, rotary",
    [(1, 1, 24, 4, 256, 64), (2, 3, 6, 2, 64, 16), (1, 5, 3, 1, 128, 128), (1, 2, 2, 1, 200, 48), (3, 1, 1, 1, 16, 16)],
)
def test_against_the_reference(
    slots: int, tokens: int, heads: int, kv_heads: int, head_dim: int, rotary: int, dtype: str, parameter_dtype: str
) -> None:
    assert check(module(), Shape(slots, tokens, heads, kv_heads, head_dim, rotary, dtype, parameter_dtype))


def test_epsilon_is_in_the_root() -> None:
    assert check(module(), Shape(tokens=4, heads=3, kv_heads=1, dtype="f32", epsilon=0.1))


def test_refuses_odd_sizes() -> None:
    for shape, message in ((Shape(head_dim=260), "multiple of 8"), (Shape(rotary_dim=40), "multiple of 16")):
        with pytest.raises(BuildError, match=message):
            launch.rope(shape, {})
