// Reductions across a warp.
#pragma once
#include "cuda.cuh"

constexpr unsigned kFullWarp = 0xffffffffu;

// The sum over the lanes that differ in the bits of `Lanes - 1` (Lanes a power of two, at most 32).
template <int Lanes = 32>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int mask = Lanes / 2; mask; mask /= 2) x += __shfl_xor_sync(kFullWarp, x, mask);
  return x;
}

// Sums N values over the lanes that differ in `Mask`, `Mask / 2`, ..: each step halves the values a lane keeps.
// Lanes with the step's bit set keep the upper half. N - 1 shuffles instead of N log2 N.
template <int N, int Mask>
__device__ __forceinline__ float reduce_scatter(const float (&x)[N]) {
  if constexpr (N == 1) {
    return x[0];
  } else {
    const bool upper = threadIdx.x & Mask;
    float half[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const float keep = upper ? x[i + N / 2] : x[i], send = upper ? x[i] : x[i + N / 2];
      half[i] = keep + __shfl_xor_sync(kFullWarp, send, Mask);
    }
    return reduce_scatter<N / 2, Mask / 2>(half);
  }
}
