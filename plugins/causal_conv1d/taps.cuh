// One output of the convolution and the roll of its state: in a launch of its own, or in front of what reads the outputs.
#pragma once
#include "../common/vector.cuh"

namespace {

constexpr int kTaps = 4;

// silu(weight . inputs), the oldest first.
__device__ __forceinline__ float convolved(const float* weight, float first, float second, float third, float now) {
  const float sum = weight[0] * first + weight[1] * second + weight[2] * third + weight[3] * now;
  return sum * sigmoid(sum);
}

// Row t of concat(state, x): t = -3, -2, -1 are the state's.
template <class Act, int N>
__device__ __forceinline__ void load_row(const Act* state, const Act* x, int t, int channels, float (&to)[N]) {
  load(t < 0 ? state + size_t(t + 3) * channels : x + size_t(t) * channels, to);
}

// The three inputs before token `commit` are the state of N channels from now on: all are read before one is written.
template <int N, class Act>
__device__ __forceinline__ void roll(Act* state, const Act* x, int commit, int channels) {
  float last[3][N];
#pragma unroll
  for (int i = 0; i < 3; ++i) load_row(state, x, commit - 3 + i, channels, last[i]);
#pragma unroll
  for (int i = 0; i < 3; ++i) store(state + size_t(i) * channels, last[i]);
}

}  // namespace
