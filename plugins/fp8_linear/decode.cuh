// 16-row groups of y = x W^T for few tokens, by one block.
//
// A warp owns 16 rows of W and every `splits`-th block of K. The block's warps add their sums in shared memory, in a
// fixed order: the result does not depend on timing.
#pragma once
#include "../common/linear_tile.cuh"

template <class Act, class Weight, class Out = Act>
struct Linear {
  const Act* x;  // [M, K]
  Weight weight;
  Out* y;  // [M, N]
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
template <bool Gated, int MT, class Act, class Weight, class Out>
__device__ void run(const Linear<Act, Weight, Out>& in, const Weight& up, int index, float* memory) {
  using Tile = typename Weight::template Tile<Act, MT>;
  const int warp = threadIdx.x / 32, tiles = in.row_groups * (Gated ? 2 : 1), splits = blockDim.x / 32 / tiles;
  const int first_row = index * kRows * in.row_groups, first_token = blockIdx.x * 8 * MT;
  const int N = in.weight.N;
  Weight weight = in.weight;
  if constexpr (Gated)
    if (warp % tiles >= in.row_groups) weight.become(up);
  unsigned char* rings = reinterpret_cast<unsigned char*>(memory + blockDim.x / 32 * Tile::kFloats);
  Tile tile(weight, in.x, in.M, first_row + warp % in.row_groups * kRows, first_token, N, rings + warp * Tile::kRingBytes);
  tile.run(warp / tiles, splits);
  launch_dependents();
  tile.save(memory + warp * Tile::kFloats);
  __syncthreads();
  const int rows = min(kRows * in.row_groups, N - first_row), tokens = min(8 * MT, in.M - first_token);
  for (int e = threadIdx.x; e < kRows * in.row_groups * tokens; e += blockDim.x) {
    const int row = e % (kRows * in.row_groups), token = e / (kRows * in.row_groups);
    if (row >= rows) continue;
    const float* from = memory + row / kRows * Tile::kFloats + token * kTileStride + row % kRows;
    float y = add_up(from, splits, tiles * Tile::kFloats);
    if constexpr (Gated) y *= sigmoid(y) * add_up(from + in.row_groups * Tile::kFloats, splits, tiles * Tile::kFloats);
    in.y[size_t(first_token + token) * N + first_row + row] = from_float<Out>(y);
  }
}

// Picks the weight that the `block`th of all blocks belongs to, and its place there; where there is none, counts these
// weights' blocks off.
template <int N, class Act, class Weight>
__device__ __forceinline__ bool pick(const Weight (&weights)[N], Act* const (&ys)[N], int rows, int& block, Weight& weight,
                                     Act*& y) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int blocks = (weights[i].N + rows - 1) / rows;
    if (!found && block < blocks) {
      weight = weights[i], y = ys[i];
      found = true;
    }
    if (!found) block -= blocks;
  }
  return found;
}
