// 16-row groups of y = x W^T for few tokens, by one block.
//
// A warp owns 16 rows of W and every `splits`-th block of K. The block's warps add their sums in shared memory, in a
// fixed order: the result does not depend on timing.
#pragma once
#include "../common/linear_tile.cuh"

template <class Act, class Weight>
struct Linear {
  const Act* x;  // [M, K]
  Weight weight;
  Act* y;  // [M, N]
  int M, row_groups;
};

// The sum over the splits of one element; `stride` floats from one to the next.
__device__ inline float add_up(const float* from, int splits, int stride) {
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += from[split * stride];
  return sum;
}

// The `index`th run of row_groups. Gated: y = silu(x W^T) * (x up^T), half of the warps working on either weight. `up`
// is `in.weight` otherwise.
template <bool Gated, int MT, class Act, class Weight>
__device__ void run(const Linear<Act, Weight>& in, const Weight& up, int index, float* memory) {
  using Tile = WarpTile<Act, Weight, MT, false>;
  const int warp = threadIdx.x / 32, tiles = in.row_groups * (Gated ? 2 : 1), splits = blockDim.x / 32 / tiles;
  const int first_row = index * kRows * in.row_groups, first_token = blockIdx.x * 8 * MT;
  const int N = in.weight.N;
  Weight weight = in.weight;
  if constexpr (Gated)
    if (warp % tiles >= in.row_groups) weight.become(up);
  Tile tile(weight, in.x, in.M, first_row + warp % in.row_groups * kRows, first_token, N);
  tile.run(warp / tiles, splits);
  tile.save(memory + warp * Tile::kFloats);
  __syncthreads();
  const int rows = min(kRows * in.row_groups, N - first_row), tokens = min(8 * MT, in.M - first_token);
  for (int e = threadIdx.x; e < kRows * in.row_groups * tokens; e += blockDim.x) {
    const int row = e % (kRows * in.row_groups), token = e / (kRows * in.row_groups);
    if (row >= rows) continue;
    const float* from = memory + row / kRows * Tile::kFloats + token * kTileStride + row % kRows;
    float y = add_up(from, splits, tiles * Tile::kFloats);
    if constexpr (Gated) y *= sigmoid(y) * add_up(from + in.row_groups * Tile::kFloats, splits, tiles * Tile::kFloats);
    in.y[size_t(first_token + token) * N + first_row + row] = from_float<Act>(y);
  }
}
