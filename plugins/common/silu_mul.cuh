// y = silu(gate) * up, eight values a thread; y may be up.
#pragma once
#include "vector.cuh"

template <class Act>
__device__ inline void silu_mul(const Act* gate, const Act* up, Act* y, long long count) {
  const long long first = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) * 8;
  if (first + 8 <= count) {
    float g[8], u[8];
    load(gate + first, g);
    load(up + first, u);
#pragma unroll
    for (int i = 0; i < 8; ++i) u[i] *= g[i] * sigmoid_for<Act>(g[i]);
    store(y + first, u);
    return;
  }
  for (long long i = first; i < count; ++i) {
    const float g = to_float(gate[i]);
    y[i] = from_float<Act>(to_float(up[i]) * g * sigmoid_for<Act>(g));
  }
}
