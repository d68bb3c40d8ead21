// A bf16 head [rows, K] as E4M3 codes [rows, K] and a bf16 scale per row and 128 columns. README.md says how.
#include <float.h>

#include "../common/fp8.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kGroup = 128, kSteps = 16, kPerLane = kGroup / 32;

// The codes of a lane's values under a scale, as one word, and the sum of their squared errors.
__device__ __forceinline__ uint32_t encode(const float (&x)[kPerLane], float scale, float& error) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) word |= uint32_t(to_e4m3(x[i] / scale)) << 8 * i;
  BfPair first, second;
  e4m3_to_bf16(word, first, second);
  const float found[kPerLane] = {low(first), high(first), low(second), high(second)};
  error = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const float off = x[i] - found[i] * scale;
    error = fmaf(off, off, error);
  }
  return word;
}

// A warp per group of 128 columns.
__device__ void quantize(const bf16* weight, uint8_t* codes, bf16* scales, long long groups, int K) {
  const int lane = threadIdx.x % 32, across = (K + kGroup - 1) / kGroup;
  const long long group = (long long)(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (group >= groups) return;
  const int column = group % across * kGroup + lane * kPerLane;
  const size_t at = size_t(group / across) * K + column;
  float x[kPerLane] = {}, amax = 0.0f;
  if (column < K) load(weight + at, x);
  bool finite = true;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    amax = fmaxf(amax, fabsf(x[i]));
    finite = finite && fabsf(x[i]) <= FLT_MAX;
  }
#pragma unroll
  for (int mask = 16; mask; mask /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, mask));
    finite = __shfl_xor_sync(kFullWarp, int(finite), mask) && finite;
  }
  float best = 1.0f, least = INFINITY;
  uint32_t word = 0;
  for (int step = 0; step < kSteps && amax >= 0x1p-100f; ++step) {
    const float scale = to_float(from_float<bf16>(amax / 448.0f * (float(kSteps + step) / kSteps)));
    float error;
    const uint32_t tried = encode(x, scale, error);
    error = warp_sum(error);
    if (error < least) least = error, best = scale, word = tried;
  }
  if (column < K) *reinterpret_cast<uint32_t*>(codes + at) = word;
  if (lane == 0) scales[group] = from_float<bf16>(finite ? best : NAN);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256)
    lm_head_quantize(const bf16* weight, uint8_t* codes, bf16* scales, long long groups, int K) {
  begin_dependent();
  quantize(weight, codes, scales, groups, K);
}
EXPORT_KERNEL(lm_head_quantize)
