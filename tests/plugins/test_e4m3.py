"""Floats rounded to E4M3 by the kernels' own code, against ml_dtypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import ml_dtypes
import numpy as np

from deltart import plugins
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.launch import Launch

SOURCE = """#include "COMMON/fp8.cuh"

extern "C" __global__ void round_all(const float* x, unsigned* codes, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) codes[i] = to_e4m3x4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
}
EXPORT_KERNEL(round_all)
"""


def cases() -> np.ndarray:
    """Every bf16, and every E4M3 and every middle of two neighbours with the floats around them; f32, of both signs."""
    with np.errstate(all="ignore"):
        codes = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        marks = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2, [np.float32(464), np.float32(480)]])
        near = [marks, np.nextafter(marks, np.float32(np.inf)), np.nextafter(marks, np.float32(-np.inf))]
        bits = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
        return np.concatenate([*near, *(-one for one in near), bits]).astype(np.float32)


def test_the_nearest_code_and_448_beyond(tmp_path: Path) -> None:
    """PTX says the same of the instruction that sm_89 and later take: ties to even, saturation, one NaN."""
    common = Path(plugins.__file__).resolve().parent / "common"
    (tmp_path / "round.cu").write_text(SOURCE.replace("COMMON", str(common)))
    x = cases()
    x = np.concatenate([x, np.zeros(-len(x) % 4, np.float32)])
    found = np.zeros(len(x), np.uint8)
    args = (*(ctypes.c_void_p(array.ctypes.data) for array in (x, found)), ctypes.c_int(len(x) // 4))
    compile_cpu(tmp_path / "round.cu").run([Launch("round_all", (-(-len(x) // 1024), 1, 1), 256, 0, args)])
    with np.errstate(invalid="ignore"):
        expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    expected[np.isnan(x)] = 0x7F
    assert len(x) > 65536 and (found == expected).all()
