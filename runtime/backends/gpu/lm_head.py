"""Loads an LM head as E4M3: pieces of it go to the device as they are stored, and a kernel makes codes and scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from deltart.manifest import WeightEntry
from deltart.plugins import lm_head
from deltart.plugins.lm_head.launch import quantize
from deltart.plugins.lm_head.reference import GROUP
from deltart.runtime.backends.gpu.cuda import Cuda
from deltart.runtime.backends.gpu.engine_manifest import QuantizedHead
from deltart.runtime.backends.gpu.weight_stream import BUFFER_BYTES, Copy, Read, stream_weights

SOURCE = Path(lm_head.__file__).resolve().parent / "quantize.cu"


def load_quantized(
    cuda: Cuda, paths: Mapping[str, Path], head: QuantizedHead, entry: WeightEntry, buffer_bytes: int = BUFFER_BYTES
) -> dict[str, int]:
    """Device addresses of the head's codes [V, K] and scales [V, ceil(K/128)], by name.

    Beside these, device memory holds one piece of at most `buffer_bytes` while it lasts.

    Args:
        paths: the weight files by name.
        entry: of the bfloat16 weight.
    """
    vocabulary, k = entry.shape
    row_bytes, groups = 2 * k, -(-k // GROUP)
    piece = min(max(1, buffer_bytes // row_bytes), vocabulary) * row_bytes
    codes, scale = cuda.allocate(vocabulary * k), cuda.allocate(2 * vocabulary * groups)
    staged, run = cuda.allocate(piece), cuda.kernels(SOURCE)

    def pieces() -> Iterator[Read]:
        for begin in range(0, entry.nbytes, piece):
            nbytes = min(piece, entry.nbytes - begin)
            yield Read(entry.file, entry.offset + begin, nbytes, [Copy(0, 0, nbytes)])

    def landed(read: Read) -> None:
        first, rows = (read.begin - entry.offset) // row_bytes, read.nbytes // row_bytes
        at = {"weight": staged, "codes": codes + first * k, "scale": scale + 2 * first * groups}
        run([quantize(rows, k, at)])

    stream_weights(cuda, paths, pieces(), staged, piece, landed)
    cuda.free(staged)
    return {head.codes: codes, head.scale: scale}
