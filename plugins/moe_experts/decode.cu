// The routed experts of few tokens: every matrix that a token chose is read once, by `mma`, through a ring of copies. A
// lane copies what it multiplies itself, so it waits for nobody; scales are dealt out to the lanes long before, and of up
// to eight tokens the values of a block are asked for before its copies are waited for.
//
// gate_up: grid (rows of eight, places). The block of an expert's first place works for all tokens that chose it.
// down: grid (rows of sixteen). A warp takes every `warps`-th expert; a token's sum is taken in the order of its places.
// down_norm: down for up to eight tokens, and behind it, by the block that is done last, sum = residual + y and
// normed = (1 + norm) * sum / rms(sum) of every token. A row's norm is that of residual_rms_norm to the bit: the same code
// on the first of the block's threads, as many as it takes.
#include "../common/last_block.cuh"
#include "../residual_rms_norm/norm.cuh"
#include "route.cuh"

namespace {

constexpr int kHalf = kRows / 2, kSumStride = kRows + 1;

// 16 rows: eight of one matrix and eight of another, times up to 8 MT rows of x, wherever they lie. Eight rows from a
// multiple of eight on share their scales.
template <class Act, class Weight, int MT>
struct ExpertTile {
  static constexpr int kTerms = sizeof(Act) == 2 ? 1 : 3, kBlock = Weight::kBlock, kChunk = Weight::kChunk;
  static constexpr int kStages = 4, kStage = 4 * 512, kRingBytes = kStages * kStage, kLine = 128;
  static constexpr bool kAhead = MT == 1 && kTerms == 1;
  static_assert(kStages == 4, "a turn's stage is its last two bits");
  using Values = Activations<kChunk / 4, kTerms>;

  const Weight W[2];
  const Act* x[MT];     // of this lane's tokens, null where there is none
  unsigned char* ring;  // this lane's part
  int tokens, g, t, row[2];
  const unsigned char* from[2];  // the lane's bytes of the next block that is fetched
  int left;                      // columns from there to the end of K
  float sum[MT][4] = {};

  __device__ ExpertTile(const Weight& upper, const Weight& lower, int upper_row, int lower_row, int tokens,
                        unsigned char* ring)
      : W{upper, lower}, ring(ring + threadIdx.x % 32 * 16), tokens(tokens), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4),
        row{min(upper_row + g, upper.N - 1), min(lower_row + g, lower.N - 1)} {
#pragma unroll
    for (int m = 0; m < MT; ++m) x[m] = nullptr;
  }

  __device__ __forceinline__ unsigned char* at(int turn, int half, int i) const {
    return ring + turn % kStages * kStage + (half * 2 + i) * 512;
  }

  // Copies the turn's block, zeros behind K; the next one that is fetched is `step` blocks on.
  __device__ __forceinline__ void fetch(int turn, int step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) copy_async(at(turn, half, i), from[half] + i * kLine / 2, left > i * kBlock / 2);
      from[half] += step * kLine;
    }
    commit_copies();
    left -= step * kBlock;
  }

  // The lane's scale of the eight rows `half`: that of the lane'th of the blocks first, first + step, ...
  __device__ __forceinline__ float scale_of(int half, int first, int step, int blocks) const {
    if constexpr (!Weight::kScaled) return 1.0f;
    const int block = first + threadIdx.x % 32 * step;
    return block < blocks ? W[half].scale_of(row[half], block) : 0.0f;
  }

  __device__ __forceinline__ void get(int m, int block, int half, Values& b) const {
    const int column = lane_column<Weight>(block, half);
    if (x[m] && column < W[0].K) b.get(x[m] + column);
  }

  __device__ __forceinline__ void multiply(int block, int turn, const float (&scale)[2], const Values (&ahead)[2]) {
    Piece w;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) w.at[half][i] = *reinterpret_cast<const uint4*>(at(turn, half, i));
      w.scale[half] = scale[half];
    }
    multiply_piece<Weight, kTerms>(w, sum, [&](int m, int half, Values& b) {
      if (8 * m >= tokens) return false;
      if constexpr (kAhead)
        b = ahead[half];
      else
        get(m, block, half, b);
      return true;
    });
  }

  // Blocks first, first + step, ... of K, with kStages - 1 of them on their way while one is multiplied.
  __device__ void run(int first, int step) {
    const int blocks = (W[0].K + kBlock - 1) / kBlock, turns = (blocks - first + step - 1) / step;
    const int column = lane_column<Weight>(first, 0);
    left = W[0].K - column;
    float later[2], scales[2] = {1.0f, 1.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) from[half] = static_cast<const unsigned char*>(W[half].at(row[half], column));
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch(i, step);
#pragma unroll
    for (int half = 0; half < 2; ++half) later[half] = scale_of(half, first, step, blocks);
    Values ahead[2] = {};
    for (int turn = 0; turn < turns; ++turn) {
      const int block = first + turn * step;
      if constexpr (kAhead) get(0, block, 0, ahead[0]), get(0, block, 1, ahead[1]);
      if (turn % 32 == 0)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          scales[half] = later[half], later[half] = scale_of(half, block + 32 * step, step, blocks);
      float scale[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        scale[half] = Weight::kScaled ? __shfl_sync(kFullWarp, scales[half], turn % 32) : 1.0f;
      wait_copies<kStages - 2>();
      fetch(turn + kStages - 1, step);
      multiply(block, turn, scale, ahead);
    }
  }

  // Calls to(row of 16, token, value) for every element that this lane holds.
  template <class To>
  __device__ __forceinline__ void each(To to) const {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) to(g + i / 2 * kHalf, 8 * m + 2 * t + i % 2, sum[m][i]);
  }
};

struct Places {
  const int* slot;  // [M, choices]
  const float* weight;
  int count, choices;
};

// The places that hold `slot`, in order, to `list` and how many to list[kMembers]; by one warp. A token chooses a slot
// once at most.
template <int kMembers>
__device__ void find_places(const Places& in, int slot, const int* slots, int* list) {
  const int lane = threadIdx.x % 32, tokens = in.count / in.choices;
  int before = 0;
  for (int first = 0; first < tokens; first += 32) {
    const int token = first + lane;
    int mine = -1;
    for (int i = token * in.choices; token < tokens && i < (token + 1) * in.choices; ++i)
      if (slots[i] == slot) mine = i;
    int upto = mine >= 0;  // how many tokens up to this one chose it
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int below = __shfl_up_sync(kFullWarp, upto, delta);
      if (lane >= delta) upto += below;
    }
    if (mine >= 0) list[before + upto - 1] = mine;
    before += __shfl_sync(kFullWarp, upto, 31);
  }
  if (lane == 0) list[kMembers] = before;
  __syncwarp();
}

// The first place of every slot that is there, in order, to `firsts` and how many to firsts[in.count]; by the block.
// `is_first` has room for all places.
__device__ inline void find_firsts(const Places& in, const int* slots, int* is_first, int* firsts) {
  for (int i = threadIdx.x; i < in.count; i += blockDim.x) {
    int seen = slots[i] < 0;
    for (int other = 0; other < i / in.choices * in.choices; ++other) seen |= slots[other] == slots[i];
    is_first[i] = !seen;
  }
  __syncthreads();
  for (int i = threadIdx.x; i <= in.count; i += blockDim.x) {
    int before = 0;
    for (int other = 0; other < i; ++other) before += is_first[other];
    if (i == in.count)
      firsts[i] = before;
    else if (is_first[i])
      firsts[before] = i;
  }
  __syncthreads();
}

// h [place] = silu(x gate^T) * (x up^T). The warps split K.
template <class Act, class Weight, int MT>
__device__ void gate_up(const Stored& in, const Places& places, const Act* x, Act* h, int stride, unsigned char* memory) {
  using Tile = ExpertTile<Act, Weight, MT>;
  const int place = blockIdx.y, warp = threadIdx.x / 32, warps = blockDim.x / 32, first_row = blockIdx.x * kHalf;
  int *slots = reinterpret_cast<int*>(memory + warps * Tile::kRingBytes), *list = slots + places.count;
  float* tiles = reinterpret_cast<float*>(list + 8 * MT + 1);
  for (int i = threadIdx.x; i < places.count; i += blockDim.x) slots[i] = places.slot[i];
  __syncthreads();
  const int slot = slots[place];
  if (slot < 0 || first_row >= in.width(slot)) return;
  if (warp == 0) find_places<8 * MT>(places, slot, slots, list);
  __syncthreads();
  const int tokens = list[8 * MT];
  if (list[0] != place) return;
  Tile tile(matrix<Weight>(in, slot, kGate), matrix<Weight>(in, slot, kUp), first_row, first_row, tokens,
            memory + warp * Tile::kRingBytes);
#pragma unroll
  for (int m = 0; m < MT; ++m)
    if (8 * m + tile.g < tokens) tile.x[m] = x + size_t(list[8 * m + tile.g] / places.choices) * in.H;
  tile.run(warp, warps);
  tile.each([&](int row, int token, float value) { tiles[(warp * 8 * MT + token) * kTileStride + row] = value; });
  __syncthreads();
  for (int e = threadIdx.x; e < tokens * kHalf; e += blockDim.x) {
    const int row = e % kHalf, token = e / kHalf;
    float gate = 0.0f, up = 0.0f;
    for (int part = 0; part < warps; ++part) {
      const float* from = tiles + (part * 8 * MT + token) * kTileStride + row;
      gate += from[0], up += from[kHalf];
    }
    if (first_row + row < in.width(slot))
      h[size_t(list[token]) * stride + first_row + row] = from_float<Act>(silu(gate) * up);
  }
}

// y [token] = sum over its places of weight * (h [place] down^T). Returns shared memory that is free once all threads are
// behind it, kSumStride floats or more, and that no copy is on its way to.
template <class Act, class Weight, int MT>
__device__ float* down(const Stored& in, const Places& places, const Act* h, int stride, Act* y, unsigned char* memory) {
  using Tile = ExpertTile<Act, Weight, MT>;
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, first_row = blockIdx.x * kRows;
  int *slots = reinterpret_cast<int*>(memory + warps * Tile::kRingBytes), *is_first = slots + places.count;
  int *firsts = is_first + places.count, *lists = firsts + places.count + 1;
  float* sums = reinterpret_cast<float*>(lists + warps * (8 * MT + 1));  // [places][kSumStride]
  for (int i = threadIdx.x; i < places.count; i += blockDim.x) slots[i] = places.slot[i];
  __syncthreads();
  find_firsts(places, slots, is_first, firsts);
  int* list = lists + warp * (8 * MT + 1);
  for (int n = warp; n < firsts[places.count]; n += warps) {
    find_places<8 * MT>(places, slots[firsts[n]], slots, list);
    const int tokens = list[8 * MT];
    const Weight W = matrix<Weight>(in, slots[firsts[n]], kDown);
    Tile tile(W, W, first_row, first_row + kHalf, tokens, memory + warp * Tile::kRingBytes);
#pragma unroll
    for (int m = 0; m < MT; ++m)
      if (8 * m + tile.g < tokens) tile.x[m] = h + size_t(list[8 * m + tile.g]) * stride;
    tile.run(0, 1);
    tile.each([&](int row, int token, float value) {
      if (token < tokens) sums[list[token] * kSumStride + row] = places.weight[list[token]] * value;
    });
    __syncwarp();  // the list is read
  }
  __syncthreads();
  const int M = places.count / places.choices;
  for (int e = threadIdx.x; e < M * kRows; e += blockDim.x) {
    const int row = e % kRows, token = e / kRows;
    if (first_row + row >= in.H) continue;
    float sum = 0.0f;
    for (int i = token * places.choices; i < (token + 1) * places.choices; ++i)
      if (slots[i] >= 0) sum += sums[i * kSumStride + row];
    y[size_t(token) * in.H + first_row + row] = from_float<Act>(sum);
  }
  return sums;
}

}  // namespace

#define DECODE_KERNELS(Act, suffix, Weight, stored, tiles)                                                               \
  extern "C" __global__ void __launch_bounds__(128, tiles < 8 ? 0 : 2)                                                   \
      moe_experts_gate_up_##suffix##_##stored##_m##tiles(                                                                \
      const Act* x, const int* slot, Act* h, STORED_ARGUMENTS, int places, int choices, int stride) {                    \
    begin_dependent();                                                                                                   \
    SHARED_MEMORY(memory);                                                                                               \
    const Stored in = STORED;                                                                                            \
    gate_up<Act, Weight, tiles>(in, {slot, nullptr, places, choices}, x, h, stride, memory);                             \
  }                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(tiles < 8 ? 320 : 256) moe_experts_down_##suffix##_##stored##_m##tiles(   \
      const Act* h, const int* slot, const float* weight, Act* y, STORED_ARGUMENTS, int places, int choices,             \
      int stride) {                                                                                                      \
    begin_dependent();                                                                                                   \
    SHARED_MEMORY(memory);                                                                                               \
    const Stored in = STORED;                                                                                            \
    down<Act, Weight, tiles>(in, {slot, weight, places, choices}, h, stride, y, memory);                                 \
  }                                                                                                                      \
  EXPORT_KERNEL(moe_experts_gate_up_##suffix##_##stored##_m##tiles)                                                      \
  EXPORT_KERNEL(moe_experts_down_##suffix##_##stored##_m##tiles)

#define DECODE_TILES(tiles)                          \
  DECODE_KERNELS(float, f32, BlockFp8, e4m3, tiles)  \
  DECODE_KERNELS(float, f32, Bf16, bf16, tiles)      \
  DECODE_KERNELS(bf16, bf16, BlockFp8, e4m3, tiles)  \
  DECODE_KERNELS(bf16, bf16, Bf16, bf16, tiles)

// At least kNormThreads threads.
#define DOWN_NORM_KERNEL(Act, suffix, Weight, stored)                                                                    \
  extern "C" __global__ void __launch_bounds__(320) moe_experts_down_norm_##suffix##_##stored(                           \
      const Act* h, const int* slot, const float* weight, Act* y, STORED_ARGUMENTS, int places, int choices, int stride, \
      const Act* residual, const void* norm, int bf16_norm, Act* normed, Act* sum, float epsilon, int* arrived) {        \
    begin_dependent();                                                                                                   \
    SHARED_MEMORY(memory);                                                                                               \
    const Stored in = STORED;                                                                                            \
    float* floats = down<Act, Weight, 1>(in, {slot, weight, places, choices}, h, stride, y, memory);                     \
    const int rows = places / choices, D = threadIdx.x < kNormThreads ? H : 0; /* the others have no part of a row */    \
    prefetch_all(residual, size_t(rows) * H * sizeof(Act)), prefetch_all(norm, size_t(H) * (bf16_norm ? 2 : 4));         \
    if (!is_last(arrived, gridDim.x, floats)) return;                                                                    \
    for (int row = 0; row < rows; ++row) {                                                                               \
      norm_row<true>(Norm<Act>{y, residual, {norm, bf16_norm}, normed, sum, D, epsilon}, row, floats);                   \
      __syncthreads();                                                                                                   \
    }                                                                                                                    \
  }                                                                                                                      \
  EXPORT_KERNEL(moe_experts_down_norm_##suffix##_##stored)

DECODE_TILES(1)
DECODE_TILES(2)
DECODE_TILES(8)
DOWN_NORM_KERNEL(float, f32, BlockFp8, e4m3)
DOWN_NORM_KERNEL(float, f32, Bf16, bf16)
DOWN_NORM_KERNEL(bf16, bf16, BlockFp8, e4m3)
DOWN_NORM_KERNEL(bf16, bf16, Bf16, bf16)
ROUTE_KERNEL(float, f32)
ROUTE_KERNEL(bf16, bf16)
