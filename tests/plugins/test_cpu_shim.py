"""The shim itself: it agrees with CUDA's rules where kernels keep them, and stops where they don't."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from deltart.errors import BuildError
from deltart.plugins.cpu_shim import runner
from deltart.plugins.cpu_shim.runner import FORWARD, REVERSE, compile_cpu
from deltart.plugins.launch import Launch

COMMON = Path(runner.__file__).resolve().parents[1] / "common"
HEADER = f'#include "{COMMON}/tensor_core.cuh"\n#include "{COMMON}/warp.cuh"\n'


def run(folder: Path, body: str, count: int = 64, order: int = FORWARD) -> np.ndarray:
    """Runs one block of 64 threads of a kernel `void k(float* out)`; returns out, which starts as NaN."""
    source = folder / "k.cu"
    source.write_text(HEADER + 'extern "C" __global__ void k(float* out) {' + body + "}\nEXPORT_KERNEL(k)\n")
    out = np.full(count, np.nan, np.float32)
    compile_cpu(source).run([Launch("k", (1, 1, 1), 64, 256, (ctypes.c_void_p(out.ctypes.data),))], order)
    return out


def test_reduce_scatter_and_sums(tmp_path: Path) -> None:
    body = """float x[4]; for (int i = 0; i < 4; ++i) x[i] = threadIdx.x * (i + 1);
              out[threadIdx.x] = reduce_scatter<4, 2>(x) + 1000 * warp_sum<4>(threadIdx.x);"""
    lanes = np.arange(64).reshape(16, 4)
    quads = lanes.sum(1, keepdims=True)
    np.testing.assert_array_equal(run(tmp_path, body), (quads * np.arange(1, 5) + 1000 * quads).ravel())


def test_bf16_rounds_to_nearest_even(tmp_path: Path) -> None:
    body = "out[threadIdx.x] = to_float(from_float<bf16>(1.0f + threadIdx.x / 512.0f));"
    import ml_dtypes

    expected = (1 + np.arange(64, dtype=np.float32) / 512).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(run(tmp_path, body), expected)


def test_mma_is_a_matrix_product(tmp_path: Path) -> None:
    """C = A B with A [16, 16] and B [8, 16] transposed read by ldmatrix, C stored by its documented layout."""
    body = """
      static bf16 a[16 * 16], b[16 * 16];
      for (int i = threadIdx.x; i < 256; i += 64) {
        a[i] = from_float<bf16>(i % 7 - 3);
        b[i] = from_float<bf16>(i % 5 - 2);
      }
      __syncthreads();
      if (threadIdx.x >= 32) return;
      const int m = threadIdx.x / 8, r = threadIdx.x % 8, g = threadIdx.x / 4, t = threadIdx.x % 4;
      BfPair fa[4], fb[4]; float c[4] = {};
      load_matrices<false>(fa, a + (m % 2 * 8 + r) * 16 + m / 2 * 8);
      load_matrices<true>(fb, b + (m % 2 * 8 + r) * 16 + m / 2 * 8);
      const BfPair left[2] = {fb[0], fb[1]};
      mma(c, fa, left);
      for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];"""
    a = (np.arange(256) % 7 - 3.0).reshape(16, 16)
    b = (np.arange(256) % 5 - 2.0).reshape(16, 16)
    np.testing.assert_array_equal(run(tmp_path, body, 128).reshape(16, 8), (a @ b)[:, :8])


@pytest.mark.parametrize("order, leader", [(FORWARD, 0), (REVERSE, 1)])
def test_a_warp_runs_ahead_until_a_barrier(tmp_path: Path, order: int, leader: int) -> None:
    body = """SHARED_MEMORY(memory); float* x = reinterpret_cast<float*>(memory);
              if (threadIdx.x % 32 == 0) x[threadIdx.x / 32] = 1;
              @
              out[threadIdx.x] = x[1 - threadIdx.x / 32];"""
    seen = np.isfinite(run(tmp_path, body.replace("@", ""), order=order).reshape(2, 32))
    assert not seen[leader].any() and seen[1 - leader].all()
    assert np.isfinite(run(tmp_path, body.replace("@", "__syncthreads();"), order=order)).all()


def test_copies_land_when_waited_for(tmp_path: Path) -> None:
    body = """SHARED_MEMORY(memory); float* x = reinterpret_cast<float*>(memory) + threadIdx.x % 8 * 4;
              static const float from[4] = {1, 2, 3, 4};
              copy_async(x, from, true); commit_copies();
              @
              out[threadIdx.x] = x[1];"""
    assert np.isnan(run(tmp_path, body.replace("@", ""))).all()
    assert np.isnan(run(tmp_path, body.replace("@", "wait_copies<1>();"))).all()
    assert (run(tmp_path, body.replace("@", "wait_copies<0>();")) == 2).all()


@pytest.mark.parametrize(
    "body, message",
    [
        ("if (threadIdx.x < 31) __syncwarp();", "deadlock"),
        ("if (threadIdx.x % 2) __syncwarp(); else out[0] = __shfl_sync(~0u, 1.0f, 0);", "different calls"),
        ("out[0] = __shfl_sync(1u, 1.0f, 0);", "full mask"),
    ],
)
def test_divergent_calls_are_errors(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        run(tmp_path, body)


def test_wrong_number_of_arguments(tmp_path: Path) -> None:
    run(tmp_path, "")
    with pytest.raises(BuildError, match="takes 1 arguments"):
        compile_cpu(tmp_path / "k.cu").run([Launch("k", (1, 1, 1), 64, 0, ())])
    with pytest.raises(BuildError, match="no kernel other"):
        compile_cpu(tmp_path / "k.cu").run([Launch("other", (1, 1, 1), 64, 0, ())])
