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
  constexpr bool kAhead = Vectors == 1;  // whether z and the weight are asked for with x, and not behind the sum: they fit
  const int lane = threadIdx.x % 32;
  float x[Vectors][kVector], z[Vectors][kVector], w[Vectors][kVector], sum = 0.0f;
  auto fetch = [&](int i, int at) {
    load(in.z + at, z[i]);
    in.weight.get(at, w[i]);
  };
#pragma unroll
  for (int i = 0; i < Vectors; ++i) {
    const int at = (i * 32 + lane) * kVector;
    if (at >= in.D) continue;
    load(in.x + at, x[i]);
    if constexpr (kAhead) fetch(i, at);
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum = fmaf(x[i][j], x[i][j], sum);
  }
  const float scale = rsqrtf(warp_sum(sum) / in.D + in.epsilon);
#pragma unroll
  for (int i = 0; i < Vectors; ++i) {
    const int at = (i * 32 + lane) * kVector;
    if (at >= in.D) continue;
    if constexpr (!kAhead) fetch(i, at);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[i][j] *= scale * w[i][j] * z[i][j] * sigmoid_for<Act>(z[i][j]);
    store(in.y + at, x[i]);
  }
}

}  // namespace
