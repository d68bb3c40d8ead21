// Activations rounded to E4M3 with scale amax / 448 per row and 128 of K, which 16 lanes hold, eight values each.
#pragma once
#include "fp8.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int kQuantizeLanes = 16;

// x / y, rounded to nearest, from 1 / y: the remainder of the first guess corrects it. For bf16 x, and y a scale of such, it
// is what a division of ten instructions gives: a test takes all mantissas.
__device__ __forceinline__ float divide(float x, float y, float inverse) {
  const float guess = x * inverse;
  return fmaf(-fmaf(guess, y, -x), inverse, guess);  // the signs keep that of -0
}

// The codes of this lane's values; `scale` is that of the 16 lanes. All lanes of the warp take part.
__device__ __forceinline__ uint2 quantize_eight(float (&values)[8], float& scale) {
  float most = 0.0f;
#pragma unroll
  for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(values[j]));
#pragma unroll
  for (int mask = kQuantizeLanes / 2; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, mask));
  scale = most > 0.0f ? most / 448.0f : 1.0f;
  // Powers of two keep scale, its inverse and remainders normal numbers; a quotient that they change would be 0 in E4M3.
  const float shift = scale < 0x1p-60f ? 0x1p96f : 1.0f, by = scale * shift, inverse = 1.0f / by;
#pragma unroll
  for (int j = 0; j < 8; ++j) values[j] = divide(values[j] * shift, by, inverse);
  return {to_e4m3x4(values[0], values[1], values[2], values[3]), to_e4m3x4(values[4], values[5], values[6], values[7])};
}
