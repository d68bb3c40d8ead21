// The gates of one token and value head, in f32.
#pragma once
#include "../common/vector.cuh"

constexpr float kNormEpsilon = 1e-6f;

// Log decay g <= 0.
__device__ __forceinline__ float log_decay(float a, float A_log, float dt_bias) {
  return -expf(A_log) * softplus(a + dt_bias);
}
