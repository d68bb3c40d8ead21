"""A plain Triton block-FP8 linear to measure against: one token (W8A16), or many, activations quantized (W8A8)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

BLOCK = 128
GEMV_CONFIGS = [
    triton.Config({"ROWS": rows}, num_warps=warps) for rows, warps in ((4, 2), (8, 4), (16, 4), (32, 4), (32, 8))
]
GEMM_CONFIGS = [
    triton.Config({"TILE_M": m, "TILE_N": 128, "GROUP": 8}, num_warps=warps, num_stages=stages)
    for m, warps, stages in ((64, 4, 4), (128, 4, 3), (128, 8, 3), (128, 8, 4), (256, 8, 3))
]


@triton.jit
def gemv_kernel(x, weight, scale, y, N, K, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    blocks = tl.cdiv(K, 128)
    total = tl.zeros((ROWS,), tl.float32)
    for block in range(0, blocks):
        k = block * 128 + tl.arange(0, 128)
        real = (rows[:, None] < N) & (k[None, :] < K)
        w = tl.load(weight + rows[:, None].to(tl.int64) * K + k[None, :], mask=real, other=0.0).to(tl.float32)
        values = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        s = tl.load(scale + rows // 128 * blocks + block, mask=rows < N, other=0.0).to(tl.float32)
        total += tl.sum(w * values[None, :], 1) * s
    tl.store(y + rows, total.to(y.dtype.element_ty), mask=rows < N)


@triton.jit
def gemm_kernel(  # type: ignore[no-untyped-def]
    codes, x_scale, weight, scale, y, M, N, K, TILE_M: tl.constexpr, TILE_N: tl.constexpr, GROUP: tl.constexpr
):
    tiles_m, tiles_n, blocks = tl.cdiv(M, TILE_M), tl.cdiv(N, TILE_N), tl.cdiv(K, 128)
    group = tl.program_id(0) // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * tiles_n)
    rows = (group * GROUP + within % height) * TILE_M + tl.arange(0, TILE_M)
    tile = within // height
    columns = tile * TILE_N + tl.arange(0, TILE_N)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for block in range(0, blocks):
        k = block * 128 + tl.arange(0, 128)
        real_a, real_b = (rows[:, None] < M) & (k[None, :] < K), (columns[None, :] < N) & (k[:, None] < K)
        a = tl.load(codes + rows[:, None].to(tl.int64) * K + k[None, :], mask=real_a, other=0.0)
        b = tl.load(weight + columns[None, :].to(tl.int64) * K + k[:, None], mask=real_b, other=0.0)
        by_row = tl.load(x_scale + rows * blocks + block, mask=rows < M, other=0.0)
        by_block = tl.load(scale + tile * TILE_N // 128 * blocks + block).to(tl.float32)
        total += tl.dot(a, b) * (by_row * by_block)[:, None]
    where = y + rows[:, None].to(tl.int64) * N + columns[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=(rows[:, None] < M) & (columns[None, :] < N))


def gemv(x: Any, weight: Any, scale: Any, y: Any, kernel: Any) -> None:
    """y [N] = W x for one token: x [K] (bf16), weight [N, K] (E4M3), scale [N / 128, K / 128].

    `kernel`: gemv_kernel, or the tuned one.
    """
    n, k = weight.shape
    kernel[lambda meta: (triton.cdiv(n, meta["ROWS"]),)](x, weight, scale, y, n, k)


def gemm(codes: Any, x_scale: Any, weight: Any, scale: Any, y: Any, kernel: Any) -> None:
    """y [M, N] of codes [M, K] (E4M3) with x_scale [M, K / 128] (f32); weight, scale and kernel as `gemv`."""
    m, (n, k) = codes.shape[0], weight.shape

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, meta["TILE_M"]) * triton.cdiv(n, meta["TILE_N"]),)

    kernel[grid](codes, x_scale, weight, scale, y, m, n, k)


def tuned() -> tuple[Any, Any]:
    """(gemv, gemm) that try their configurations on the GPU when they first meet a shape."""
    return (
        triton.autotune(GEMV_CONFIGS, key=["N", "K"])(gemv_kernel),
        triton.autotune(GEMM_CONFIGS, key=["M", "N", "K"])(gemm_kernel),
    )
