"""Random packed weights at the speed of a disk: their nibbles are drawn, no value is rounded."""

from __future__ import annotations

import numpy as np

from deltart.export.regions import PACKED, PACKED_SCALE, PACKED_SHAPE
from deltart.plugins.int4_linear.reference import ZERO
from deltart.safetensors import TensorInfo

SPREAD = (sum(n * n for n in range(-7, 8)) / 16) ** 0.5  # of the values below: -7 to 7, and 0 twice as often
_BYTES = np.arange(256)
_LOW, _HIGH = _BYTES & 15, _BYTES >> 4
NIBBLES = (np.where(_LOW, _LOW, ZERO) | np.where(_HIGH, _HIGH, ZERO) << 4).astype(np.uint8)  # a random byte's values


def random_packed(packed: TensorInfo, scale: TensorInfo, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values of a packed weight [out, in] of standard deviation in^-0.5, by tensor: words, scales and shape."""
    module, (rows, words) = packed.name.removesuffix(PACKED), packed.shape
    drawn = NIBBLES[np.frombuffer(rng.bytes(packed.nbytes), np.uint8)]
    return {
        packed.name: drawn.view(np.int32).reshape(packed.shape),
        f"{module}{PACKED_SCALE}": rng.uniform(0.5, 1.5, scale.shape) * (words * 8) ** -0.5 / SPREAD,
        f"{module}{PACKED_SHAPE}": np.array([rows, words * 8]),
    }
