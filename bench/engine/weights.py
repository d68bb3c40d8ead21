"""Random weights on the device, in place of a sparse checkpoint's zeros, which take less power to multiply."""

from __future__ import annotations

import numpy as np

from deltart.dtypes import BF16, BY_STORED, E4M3, E4M3_MAX
from deltart.plugins.lm_head.reference import GROUP
from deltart.runtime.backends.gpu.backend import TensorRtBackend
from deltart.runtime.backends.gpu.cuda import Cuda

TILE_BYTES = 32 << 20  # drawn once for each type, and copied as often as it takes
SPREAD = 0.02


def randomize(cuda: Cuda, backend: TensorRtBackend, seed: int = 0) -> None:
    """Overwrite every weight of the engine: normals, E4M3 codes over their whole range."""
    rng, tiles, tensors = np.random.default_rng(seed), dict[str, np.ndarray](), backend.manifest.tensors
    kinds = {name: (tensors[name].dtype, tensors[name].nbytes) for name in backend.weights if name in tensors}
    if (head := backend.engine.lm_head) is not None:
        rows, k = tensors[head.weight].shape
        kinds[head.codes], kinds[head.scale] = (E4M3.stored, rows * k), (BF16.stored, 2 * rows * -(-k // GROUP))
    for name, (dtype, nbytes) in kinds.items():
        if dtype not in tiles:
            tiles[dtype] = _tile(cuda, rng, dtype)
        for begin in range(0, nbytes, TILE_BYTES):
            cuda.to_device(backend.weights[name] + begin, tiles[dtype][: min(TILE_BYTES, nbytes - begin)])
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
