// A row of sum = h + x, y = (1 + weight) * sum / rms(sum), by one block: on its own, or behind the linear that makes x.
//
// A thread keeps its part of the row in registers between the sum of squares and the product.
#pragma once
#include "../common/fresh.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kVector = 8, kNormThreads = 256, kMostVectors = 4;  // D up to 8192

template <class Act>
struct Norm {
  const Act* x;      // [rows, D]; null where nothing is added, and no sum is written
  const Act* h;      // [rows, D]
  Parameter weight;  // [D]
  Act *y, *sum;      // [rows, D]; sum may be h
  int D;
  float epsilon;
};

// Row `row`, by a block of kNormThreads; `sums` holds a float for each of its warps.
template <bool Fresh, class Act>
__device__ void norm_row(const Norm<Act>& in, int row, float* sums) {
  const size_t base = size_t(row) * in.D;
  float h[kMostVectors][kVector], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int at = (i * kNormThreads + threadIdx.x) * kVector;
    if (at >= in.D) continue;
    load(in.h + base + at, h[i]);
    if (in.x) {
      float x[kVector];
      if constexpr (Fresh)
        load_fresh(in.x + base + at, x);
      else
        load(in.x + base + at, x);
#pragma unroll
      for (int j = 0; j < kVector; ++j) h[i][j] = to_float(from_float<Act>(h[i][j] + x[j]));  // what its readers see
      store(in.sum + base + at, h[i]);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum = fmaf(h[i][j], h[i][j], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kNormThreads / 32; ++warp) total += sums[warp];
  const float scale = rsqrtf(total / in.D + in.epsilon);
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int at = (i * kNormThreads + threadIdx.x) * kVector;
    if (at >= in.D) continue;
    float w[kVector];
    in.weight.get(at, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j) h[i][j] *= scale * (1.0f + w[j]);
    store(in.y + base + at, h[i]);
  }
}

}  // namespace
