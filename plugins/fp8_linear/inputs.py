"""Seeded inputs of the block-FP8 linear, shared by its tests and its benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from deltart.plugins.dtypes import cast, poisoned
from deltart.plugins.fp8_linear.reference import BLOCK

# [N, K] of every block-FP8 weight of the 27B model.
SHAPES_27B = {
    "in_proj_qkv": (10240, 5120),
    "in_proj_z": (6144, 5120),
    "out_proj": (5120, 6144),
    "q_proj": (12288, 5120),
    "k_proj": (1024, 5120),
    "o_proj": (5120, 6144),
    "gate_proj": (17408, 5120),
    "down_proj": (5120, 17408),
}


@dataclass(frozen=True)
class Shape:
    """Sizes and types of one call: x [slots, tokens, k], weight [n, k]. scale_dtype is the scales' storage type."""

    slots: int = 1
    tokens: int = 1
    n: int = 5120
    k: int = 5120
    dtype: str = "bf16"
    scale_dtype: str = "bf16"

    @property
    def rows(self) -> int:
        """M: the tokens of all slots."""
        return self.slots * self.tokens


def weight(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Random E4M3 [n, k], each row at its own power of two: subnormals and both ends of the range occur."""
    values = rng.standard_normal((n, k), np.float32) * np.exp2(rng.integers(-7, 7, (n, 1)).astype(np.float32))
    return values.astype(ml_dtypes.float8_e4m3fn)


def make(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """x, weight and weight_scale_inv."""
    rng = np.random.default_rng(seed)
    blocks = (-(-shape.n // BLOCK), -(-shape.k // BLOCK))
    return {
        "x": cast(rng.standard_normal((shape.slots, shape.tokens, shape.k)), shape.dtype),
        "weight": weight(rng, shape.n, shape.k),
        "weight_scale_inv": cast(rng.uniform(1e-4, 1e-3, blocks), shape.scale_dtype),
    }


def outputs(shape: Shape) -> dict[str, np.ndarray]:
    """y, full of NaN."""
    return {"y": poisoned((shape.slots, shape.tokens, shape.n), shape.dtype)}
