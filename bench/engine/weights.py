"""Random weights on the device, in place of a sparse checkpoint's zeros, which take less power to multiply."""

from __future__ import annotations

import numpy as np

from deltart.dtypes import BY_STORED, E4M3_MAX
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import Cuda

TILE_BYTES = 32 << 20  # drawn once for each type, and copied as often as it takes
SPREAD = 0.02


def randomize(cuda: Cuda, backend: TensorRtBackend, seed: int = 0) -> None:
    """Overwrite every weight of the engine: normals, E4M3 codes over their whole range."""
    rng, tiles = np.random.default_rng(seed), dict[str, np.ndarray]()
    for name, address in backend.weights.items():
        entry = backend.manifest.tensors[name]
        if entry.dtype not in tiles:
            tiles[entry.dtype] = _tile(cuda, rng, entry.dtype)
        tile = tiles[entry.dtype]
        for begin in range(0, entry.nbytes, TILE_BYTES):
            cuda.to_device(address + begin, tile[: min(TILE_BYTES, entry.nbytes - begin)])
    cuda.synchronize()
    for tile in tiles.values():
        cuda.unpin(tile)


def _tile(cuda: Cuda, rng: np.random.Generator, stored: str) -> np.ndarray:
    dtype = BY_STORED[stored]
    spread = E4M3_MAX / 4 if dtype.itemsize == 1 else SPREAD
    values = spread * rng.standard_normal(TILE_BYTES // dtype.itemsize, np.float32)
    tile = cuda.pinned(TILE_BYTES)
    tile[:] = np.clip(values, -E4M3_MAX, E4M3_MAX).astype(dtype.numpy).view(np.uint8)
    return tile
