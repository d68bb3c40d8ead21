// The parts of the keys put together, in a launch of their own.
#pragma once
#include "tile.cuh"

namespace {

// The splits of one (token, head): every quarter of the threads takes a quarter of the splits, a thread four columns.
// Gates are `apart` values from one head to the next.
__device__ void combine(const float* partial, const bf16* gate, const int* past_len, const int* n_tokens, bf16* o,
                        int splits, int D, int apart, float* memory) {
  const int head = blockIdx.x, token = blockIdx.y, slot = blockIdx.z, part = threadIdx.x / (D / 4);
  const int column = threadIdx.x % (D / 4) * 4, live = min(n_tokens[slot], int(gridDim.y));
  const size_t row = (size_t(slot) * gridDim.y + token) * gridDim.x + head, at = row * D + column;
  const size_t rows = size_t(gridDim.z) * gridDim.y * gridDim.x * splits;
  float sum[4] = {}, total = 0.0f;
  if (token < live) {
    const int seen = Partition(past_len[slot] + token + 1, splits).live, mine = (seen + kCombiners - 1) / kCombiners;
    const float* stats = partial + rows * D + row * splits * 2;
    float most = kMasked;
    for (int i = threadIdx.x % 32; i < seen; i += 32) most = fmaxf(most, stats[2 * i]);
#pragma unroll
    for (int mask = 16; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, mask));
#pragma unroll 4
    for (int i = part * mine; i < min(seen, (part + 1) * mine); ++i) {
      const float weight = exp2f(stats[2 * i] - most);
      float x[4];
      load(partial + (row * splits + i) * D + column, x);
      total = fmaf(weight, stats[2 * i + 1], total);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = fmaf(weight, x[j], sum[j]);
    }
  }
  float* totals = memory + kCombiners * D;
  store(memory + part * D + column, sum);
  if (column == 0) totals[part] = total;
  __syncthreads();
  if (part) return;
  for (int other = 1; other < kCombiners; ++other) {
    float x[4];
    load(memory + other * D + column, x);
    total += totals[other];
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += x[j];
  }
  if (token < live) {
    float g[4];
    load(gate + row * apart + column, g);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] *= sigmoid(g[j]) / total;
  }
  store(o + at, sum);
}

}  // namespace
