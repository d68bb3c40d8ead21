// A head of D channels, normalised and turned by RoPE, by a warp with 8 consecutive channels a lane: the channel that
// RoPE pairs with a lane's own is in the lane rotary / 16 further on, or as far back.
#pragma once
#include "../common/vector.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kChannels = 8;  // of a lane

template <class Act>
struct Turn {
  const Act *cos, *sin;  // [rows, rotary / 2]
  int rotary;
  float epsilon;

  // x: a lane's channels of a head of row `row`, zeros beyond D. All lanes come here.
  __device__ __forceinline__ void apply(const Parameter& weight, size_t row, int D, float (&x)[kChannels]) const {
    const int lane = threadIdx.x % 32, at = lane * kChannels, pairs = rotary / 2, apart = pairs / kChannels;
    const bool turns = at < rotary, second = at >= pairs;
    float w[kChannels] = {}, c[kChannels] = {}, s[kChannels] = {}, sum = 0.0f;
    if (at < D) weight.get(at, w);
    if (turns) {
      const size_t angle = row * pairs + at % pairs;
      load(cos + angle, c);
      load(sin + angle, s);
    }
#pragma unroll
    for (int i = 0; i < kChannels; ++i) sum = fmaf(x[i], x[i], sum);
    const float scale = rsqrtf(warp_sum(sum) / D + epsilon);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      x[i] *= scale * (1.0f + w[i]);
      const float other = __shfl_sync(kFullWarp, x[i], (second ? lane - apart : lane + apart) & 31);
      if (turns) x[i] = x[i] * c[i] + (second ? other : -other) * s[i];
    }
  }
};

}  // namespace
