// y = weight * x / rms(x) * silu(z) of a head of D channels by one warp: in a launch of its own, or behind what makes x.
#pragma once
#include "../common/vector.cuh"
#include "../common/warp.cuh"

namespace {

template <class Act>
struct GatedNorm {
  const Act *x, *z;  // [D]
  Parameter weight;  // [D]
  Act* y;            // [D]
  int D;
  float epsilon;
};

// D up to 128 * Vectors.
template <int Vectors, class Act>
__device__ __forceinline__ void norm_head(const GatedNorm<Act>& in) {
  constexpr int kVector = 4;
  const int lane = threadIdx.x % 32;
  float x[Vectors][kVector], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < Vectors; ++i) {
    const int at = (i * 32 + lane) * kVector;
    if (at >= in.D) continue;
    load(in.x + at, x[i]);
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum = fmaf(x[i][j], x[i][j], sum);
  }
  const float scale = rsqrtf(warp_sum(sum) / in.D + in.epsilon);
#pragma unroll
  for (int i = 0; i < Vectors; ++i) {
    const int at = (i * 32 + lane) * kVector;
    if (at >= in.D) continue;
    float z[kVector], w[kVector];
    load(in.z + at, z);
    in.weight.get(at, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[i][j] *= scale * w[j] * z[j] * sigmoid(z[j]);
    store(in.y + at, x[i]);
  }
}

}  // namespace
