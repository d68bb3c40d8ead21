// y = x W^T for few tokens, W stored as the checkpoint stores it: [N, K] E4M3 and a scale per 128 x 128 block.
//
// A warp owns 16 rows of W and every `splits`-th 128-wide block of K. The block's warps add their sums in shared
// memory, in a fixed order: the result does not depend on timing.
// Grid (ceil(M / (8 MT)), ceil(N / (16 row_groups))): blocks that read the same weights are neighbours.
#include "../common/linear_tile.cuh"

namespace {

template <class Act>
struct Linear {
  const Act* x;  // [M, K]
  BlockFp8 weight;
  Act* y;  // [M, N]
  int M, row_groups;
};

// The sum over the splits of one element; `stride` floats from one to the next.
__device__ float add_up(const float* from, int splits, int stride) {
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += from[split * stride];
  return sum;
}

// Gated: y = silu(x W^T) * (x up^T), half of the warps working on either weight. `up` is `in.weight` otherwise.
template <bool Gated, class Act, int MT>
__device__ void run(const Linear<Act>& in, const BlockFp8& up, float* memory) {
  using Tile = WarpTile<Act, BlockFp8, MT, false>;
  const int warp = threadIdx.x / 32, tiles = in.row_groups * (Gated ? 2 : 1), splits = blockDim.x / 32 / tiles;
  const int first_row = blockIdx.y * kRows * in.row_groups, first_token = blockIdx.x * 8 * MT;
  const int N = in.weight.N;
  BlockFp8 weight = in.weight;
  if (Gated && warp % tiles >= in.row_groups) weight.weight = up.weight, weight.scale = up.scale;
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
    if (Gated) y *= sigmoid(y) * add_up(from + in.row_groups * Tile::kFloats, splits, tiles * Tile::kFloats);
    in.y[size_t(first_token + token) * N + first_row + row] = from_float<Act>(y);
  }
}

}  // namespace

#define LINEAR_KERNEL(Act, suffix, tiles, resident)                                                               \
  extern "C" __global__ void __launch_bounds__(256, resident) fp8_block_linear_decode_##suffix##_m##tiles(        \
      const Act* x, const uint8_t* weight, const void* scale, int bf16_scales, Act* y, int M, int N, int K,       \
      int row_groups) {                                                                                           \
    SHARED_MEMORY(memory);                                                                                        \
    const BlockFp8 W = {weight, {scale, bf16_scales}, N, K};                                                      \
    run<false, Act, tiles>({x, W, y, M, row_groups}, W, reinterpret_cast<float*>(memory));                        \
  }                                                                                                               \
  extern "C" __global__ void __launch_bounds__(256, resident) fp8_block_linear_gate_up_##suffix##_m##tiles(       \
      const Act* x, const uint8_t* gate, const void* gate_scale, const uint8_t* up, const void* up_scale,         \
      int bf16_scales, Act* y, int M, int N, int K, int row_groups) {                                             \
    SHARED_MEMORY(memory);                                                                                        \
    run<true, Act, tiles>({x, {gate, {gate_scale, bf16_scales}, N, K}, y, M, row_groups},                         \
                          {up, {up_scale, bf16_scales}, N, K}, reinterpret_cast<float*>(memory));                 \
  }                                                                                                               \
  EXPORT_KERNEL(fp8_block_linear_decode_##suffix##_m##tiles)                                                      \
  EXPORT_KERNEL(fp8_block_linear_gate_up_##suffix##_m##tiles)

#define LINEAR_KERNELS(tiles, resident)    \
  LINEAR_KERNEL(float, f32, tiles, 1)      \
  LINEAR_KERNEL(bf16, bf16, tiles, resident)

LINEAR_KERNELS(1, 2)
LINEAR_KERNELS(2, 2)
LINEAR_KERNELS(4, 1)
