// logits = x W^T over the vocabulary, and the best tokens of it. README.md has the contract.
//
// A block owns 128 rows of W, 16 for each of its warps, and up to 8 MT tokens. It writes its logits if they are
// wanted, and its `keep` best (logit, id) pairs, best first: lm_head_merge picks the best of all blocks.
// Equal logits: the lower id is the better one. Of few rows (a router's, one for each expert) logits alone are made as by
// the other linears, sixteen rows a block, K split over its warps.
#include <limits.h>

#include "../fp8_linear/decode.cuh"

namespace {

constexpr int kWarps = 8, kBlockRows = kWarps * kRows, kPerLane = kBlockRows / 32;

struct Candidate {
  float logit;
  int id;
  __device__ bool beats(const Candidate& other) const {
    return logit > other.logit || (logit == other.logit && id < other.id);
  }
};

// The best of the warp's candidates, in every lane.
__device__ Candidate warp_best(Candidate mine) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) {
    const Candidate other = {__shfl_xor_sync(0xffffffffu, mine.logit, mask), __shfl_xor_sync(0xffffffffu, mine.id, mask)};
    if (other.beats(mine)) mine = other;
  }
  return mine;
}

template <class Act, class Weight>
struct Head {
  const Act* x;  // [M, K]
  Weight W;      // [vocabulary, K]
  const int* ids;  // [rows] of W, or null: all of its rows
  float* logits;   // [M, rows], or null
  float* best_logits;
  int* best_ids;  // [M, blocks, keep]; id INT_MAX where a block has fewer
  int M, rows, limit, keep;  // ids from `limit` on are padding
};

template <class Act, class Weight>
__device__ void select(const Head<Act, Weight>& in, const float* tile, int stride, int token, size_t to) {
  const int lane = threadIdx.x % 32, first = blockIdx.x * kBlockRows;
  Candidate mine[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int row = i * 32 + lane, at = first + row;
    mine[i] = {-INFINITY, INT_MAX};
    if (at >= in.rows) continue;
    const int id = in.ids ? in.ids[at] : at;
    const float logit = tile[row / kRows * stride + token * kTileStride + row % kRows];
    if (id < in.limit) mine[i] = {logit, id};
  }
  for (int n = 0; n < in.keep; ++n) {
    Candidate best = mine[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i)
      if (mine[i].beats(best)) best = mine[i];
    best = warp_best(best);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i)
      if (mine[i].id == best.id) mine[i] = {-INFINITY, INT_MAX};
    if (lane == 0) in.best_logits[to + n] = best.logit, in.best_ids[to + n] = best.id;
  }
}

template <int MT, class Act, class Weight>
__device__ void run(const Head<Act, Weight>& in, float* memory) {
  using Tile = WarpTile<Act, Weight, MT, true>;
  const int warp = threadIdx.x / 32, first = blockIdx.x * kBlockRows, first_token = blockIdx.y * 8 * MT;
  unsigned char* rings = reinterpret_cast<unsigned char*>(memory + kWarps * Tile::kFloats);
  Tile tile(in.W, in.x, in.M, first + warp * kRows, first_token, in.rows, rings + warp * Tile::kRingBytes, in.ids);
  tile.run(0, 1);
  launch_dependents();
  tile.save(memory + warp * Tile::kFloats);
  __syncthreads();
  const int tokens = min(8 * MT, in.M - first_token), rows = min(kBlockRows, in.rows - first);
  if (in.logits)
    for (int e = threadIdx.x; e < tokens * kBlockRows; e += blockDim.x) {
      const int row = e % kBlockRows, token = e / kBlockRows;
      if (row < rows)
        in.logits[size_t(first_token + token) * in.rows + first + row] =
            memory[row / kRows * Tile::kFloats + token * kTileStride + row % kRows];
    }
  for (int token = warp; in.keep && token < tokens; token += kWarps)
    select(in, memory, Tile::kFloats, token, (size_t(first_token + token) * gridDim.x + blockIdx.x) * in.keep);
}

// Lists [M, lists, keep], best first, to [M, keep]. One block per token; a thread owns every blockDim.x-th list.
__device__ void merge(const float* logits, const int* ids, float* best_logits, int* best_ids, int lists, int keep,
                      Candidate* shared) {
  const int token = blockIdx.x, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const size_t base = size_t(token) * lists * keep;
  int* used = reinterpret_cast<int*>(shared + warps);  // [lists], how many of each are taken
  for (int i = threadIdx.x; i < lists; i += blockDim.x) used[i] = 0;
  for (int n = 0; n < keep; ++n) {
    Candidate best = {-INFINITY, INT_MAX};
    int from = -1;
    for (int i = threadIdx.x; i < lists; i += blockDim.x) {
      if (used[i] == keep) continue;
      const size_t at = base + size_t(i) * keep + used[i];
      const Candidate head = {logits[at], ids[at]};
      if (head.beats(best)) best = head, from = i;
    }
    const Candidate mine = warp_best(best);
    __syncthreads();  // the last round's candidates are read
    if (threadIdx.x % 32 == 0) shared[warp] = mine;
    __syncthreads();
    Candidate winner = shared[0];
    for (int i = 1; i < warps; ++i)
      if (shared[i].beats(winner)) winner = shared[i];
    if (from >= 0 && best.id == winner.id) ++used[from];
    if (threadIdx.x == 0) best_logits[size_t(token) * keep + n] = winner.logit, best_ids[size_t(token) * keep + n] = winner.id;
  }
}

}  // namespace

#define HEAD_OUTPUTS \
  const int *ids, float *logits, float *best_logits, int *best_ids, int M, int N, int K, int rows, int limit, int keep

#define HEAD_KERNELS(Act, suffix, tiles, resident)                                                                    \
  extern "C" __global__ void __launch_bounds__(256, resident) lm_head_##suffix##_bf16_m##tiles(                               \
      const Act* x, const bf16* weight, HEAD_OUTPUTS) {                                                               \
    SHARED_MEMORY(memory);                                                                                            \
    run<tiles>(Head<Act, Bf16>{x, {weight, N, K}, ids, logits, best_logits, best_ids, M, rows, limit, keep},          \
               reinterpret_cast<float*>(memory));                                                                     \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, resident) lm_head_##suffix##_e4m3_m##tiles(                              \
      const Act* x, const uint8_t* weight, const bf16* scale, HEAD_OUTPUTS) {                                         \
    SHARED_MEMORY(memory);                                                                                            \
    run<tiles>(Head<Act, RowFp8>{x, {weight, scale, N, K}, ids, logits, best_logits, best_ids, M, rows, limit, keep}, \
               reinterpret_cast<float*>(memory));                                                                     \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, resident) lm_head_few_##suffix##_bf16_m##tiles(                          \
      const Act* x, const bf16* weight, float* logits, int M, int N, int K) {                                         \
    SHARED_MEMORY(memory);                                                                                            \
    const Bf16 W = {weight, N, K};                                                                                    \
    run<false, tiles>(Linear<Act, Bf16, float>{x, W, logits, M, 1}, W, blockIdx.y, reinterpret_cast<float*>(memory)); \
  }                                                                                                                   \
  EXPORT_KERNEL(lm_head_few_##suffix##_bf16_m##tiles)                                                                 \
  EXPORT_KERNEL(lm_head_##suffix##_bf16_m##tiles)                                                                     \
  EXPORT_KERNEL(lm_head_##suffix##_e4m3_m##tiles)

HEAD_KERNELS(float, f32, 1, 2)
HEAD_KERNELS(bf16, bf16, 1, 2)
HEAD_KERNELS(float, f32, 4, 1)
HEAD_KERNELS(bf16, bf16, 4, 1)

extern "C" __global__ void __launch_bounds__(1024) lm_head_merge(const float* logits, const int* ids, float* best_logits,
                                                                 int* best_ids, int lists, int keep) {
  begin_dependent();
  SHARED_MEMORY(memory);
  merge(logits, ids, best_logits, best_ids, lists, keep, reinterpret_cast<Candidate*>(memory));
}
EXPORT_KERNEL(lm_head_merge)
