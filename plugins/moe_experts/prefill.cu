// The routed experts of many tokens: places in the order of their slots, tiles of 64 of them times an expert's matrices.
//
// Every step is a function of the routes alone: no atomics, equal inputs give equal bits.
//   count    how many places hold each slot               arrange  their order, and the tiles of it
//   gate_up  h [ordered place] = silu(x gate^T) * (x up^T)  down     rows [ordered place] = weight * (h down^T)
//   combine  y [token] = the sum of its rows, in the order of its places
#include "route.cuh"

namespace {

constexpr int kThreads = 256, kTokens = 64, kTileRows = 128;  // of a tile: tokens, and rows of the weights

struct Order {
  const int* slot;  // [places], by token
  int *count;       // [groups]: slots, and the shared one
  int *place;       // [places] in the order of their slots
  int *position;    // of each place in that order, -1 where it has no slot
  int *tile_slot, *tile_first, *tile_tokens;  // [tiles]; slot -1 where there is none
  int places, groups, tiles;
};

// What the products read of it.
struct Tiles {
  const int *place, *slot, *first, *tokens;
};

// The sum over the block of one integer a thread; `partial` has room for every warp.
__device__ int block_count(int x, int* partial) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(kFullWarp, x, mask);
  __syncthreads();  // the last call's parts are read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  int sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += partial[warp];
  return sum;
}

// One block per slot.
__device__ void count(const Order& in, int* partial) {
  int mine = 0;
  for (int i = threadIdx.x; i < in.places; i += kThreads) mine += in.slot[i] == int(blockIdx.x);
  mine = block_count(mine, partial);
  if (threadIdx.x == 0) in.count[blockIdx.x] = mine;
}

// One block per slot: its places go behind those of the slots before it, each behind the earlier ones.
__device__ void arrange(const Order& in, int* partial) {
  const int slot = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0, tiles = 0;
  for (int i = threadIdx.x; i < slot; i += kThreads) {
    before += in.count[i];
    tiles += (in.count[i] + kTokens - 1) / kTokens;
  }
  before = block_count(before, partial), tiles = block_count(tiles, partial);
  const int mine = in.count[slot], own_tiles = (mine + kTokens - 1) / kTokens;
  const int last = slot + 1 == in.groups ? in.tiles : tiles + own_tiles;
  for (int i = tiles + threadIdx.x; i < last; i += kThreads) {
    const bool is = i < tiles + own_tiles;
    in.tile_slot[i] = is ? slot : -1;
    in.tile_first[i] = before + (i - tiles) * kTokens;
    in.tile_tokens[i] = is ? min(kTokens, mine - (i - tiles) * kTokens) : 0;
  }
  for (int first = 0; first < in.places; first += kThreads) {
    const int i = first + threadIdx.x, is = i < in.places && in.slot[i] == slot;
    int upto = is;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int below = __shfl_up_sync(kFullWarp, upto, delta);
      if (lane >= delta) upto += below;
    }
    __syncthreads();  // the last round's parts are read
    if (lane == 31) partial[warp] = upto;
    __syncthreads();
    int at = before + upto - 1;
    for (int other = 0; other < kThreads / 32; ++other) {
      if (other < warp) at += partial[other];
      before += partial[other];
    }
    if (is) in.place[at] = i, in.position[i] = at;
    if (slot == 0 && i < in.places && in.slot[i] < 0) in.position[i] = -1;
  }
}

// How weights lie in shared memory and become right operands, for 32 of K of 16 rows.
struct Fp8Operand {
  using Weight = BlockFp8;
  static constexpr int kBytes = 1, kStride = 80, kStrideX = 160;
};
struct Bf16Operand {
  using Weight = Bf16;
  static constexpr int kBytes = 2, kStride = 144, kStrideX = 144;
};

// 64 rows of x times 128 rows of two matrices (Gated: 64 of each) or of one. Eight warps, 32 x 32 each.
template <class Operand, bool Gated>
struct GroupTile {
  using Weight = typename Operand::Weight;
  static constexpr int kStep = 64, kStages = 3, kScaled = 128;  // of K
  static constexpr int kStageX = kTokens * Operand::kStrideX, kStage = kStageX + kTileRows * Operand::kStride;
  static constexpr int kPieces = kStep * Operand::kBytes / 16;  // of a row of W

  const Weight W[2];
  const bf16* x;
  const int* rows;  // of x, of each token of the tile
  size_t stride;    // from one to the next
  unsigned char* memory;
  int tokens, first_row, lane, warp, g, t, token, row;  // token, row: this warp's part
  float sum[2][4][4] = {}, part[2][4][4] = {};

  __device__ GroupTile(const Weight& first, const Weight& second, const bf16* x, int stride, const int* rows,
                       int tokens, int first_row, unsigned char* memory)
      : W{first, second}, x(x), rows(rows), stride(stride), memory(memory), tokens(tokens), first_row(first_row),
        lane(threadIdx.x % 32), warp(threadIdx.x / 32), g(lane / 4), t(lane % 4), token(warp / 4 * 32),
        row(warp % 4 * 32) {}

  __device__ unsigned char* x_at(int stage) const { return memory + stage * kStage; }
  __device__ unsigned char* w_at(int stage) const { return x_at(stage) + kStageX; }

  // Row r of the tile is row `row_of(r)` of matrix `matrix_of(r)`: gated ones alternate by eight.
  __device__ static int matrix_of(int r) { return Gated ? r / 8 % 2 : 0; }
  __device__ int row_of(int r) const { return first_row + (Gated ? r / 16 * 8 + r % 8 : r); }

  __device__ void fetch(int step) {
    const int stage = step % kStages, K = W[0].K;
#pragma unroll
    for (int e = threadIdx.x; e < kTokens * 8; e += kThreads) {
      const int r = e / 8, k = step * kStep + e % 8 * 8;
      const bool is = r < tokens && k < K;
      copy_async(x_at(stage) + r * Operand::kStrideX + e % 8 * 16, x + (is ? rows[r] * stride + k : 0), is);
    }
#pragma unroll
    for (int e = threadIdx.x; e < kTileRows * kPieces; e += kThreads) {
      const int r = e / kPieces, piece = e % kPieces, k = step * kStep + piece * 16 / Operand::kBytes;
      const Weight& from = W[matrix_of(r)];
      const bool is = row_of(r) < from.N && k < K;
      copy_async(w_at(stage) + r * Operand::kStride + piece * 16, is ? from.at(row_of(r), k) : from.at(0, 0), is);
    }
  }

  // 32 bytes of K of 16 rows of W: the right operands of two column tiles.
  __device__ __forceinline__ void load_weights(int stage, int n, int byte, BfPair (&b)[4]) const {
    const int r = row + n * 16 + lane % 8 + lane / 16 * 8;
    load_matrices<false>(b, reinterpret_cast<const bf16*>(w_at(stage) + r * Operand::kStride + byte + lane / 8 % 2 * 16));
  }

  __device__ __forceinline__ void multiply(int stage, Fp8Operand*) {
#pragma unroll
    for (int k = 0; k < kStep; k += 32) {
      BfPair b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_weights(stage, n, k, b[n]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        BfPair right[4][2];
#pragma unroll
        for (int n = 0; n < 4; ++n) e4m3_to_bf16(b[n / 2][n % 2 * 2 + half], right[n][0], right[n][1]);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          // A lane holds values 4 t .. 4 t + 3 of each 16 of K, in W (as ldmatrix deals bytes) and so in x.
          const unsigned char* from = x_at(stage) + (token + m * 16 + g) * Operand::kStrideX + (k + half * 16 + 4 * t) * 2;
          const uint2 top = *reinterpret_cast<const uint2*>(from);
          const uint2 bottom = *reinterpret_cast<const uint2*>(from + 8 * Operand::kStrideX);
          const BfPair a[4] = {top.x, bottom.x, top.y, bottom.y};
#pragma unroll
          for (int n = 0; n < 4; ++n) mma(part[m][n], a, right[n]);
        }
      }
    }
  }
  __device__ __forceinline__ void multiply(int stage, Bf16Operand*) {
#pragma unroll
    for (int k = 0; k < kStep; k += 16) {
      BfPair b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_weights(stage, n, k * 2, b[n]);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        BfPair a[4];
        const unsigned char* from = x_at(stage) + (token + m * 16 + lane % 16) * Operand::kStrideX + (k + lane / 16 * 8) * 2;
        load_matrices<false>(a, reinterpret_cast<const bf16*>(from));
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const BfPair right[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          mma(part[m][n], a, right);
        }
      }
    }
  }

  // The sums of a scaled block of K, to the sums of the tile.
  __device__ __forceinline__ void promote(int block) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int r = row + n * 8;  // the tile's rows of one matrix lie in one block of it
      const float by = W[matrix_of(r)].scale_of(row_of(r), block);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[m][n][i] = fmaf(by, part[m][n][i], sum[m][n][i]);
          part[m][n][i] = 0.0f;
        }
    }
  }

  __device__ void run() {
    const int steps = (W[0].K + kStep - 1) / kStep;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < steps) fetch(i);
      commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
      wait_copies<kStages - 2>();
      __syncthreads();
      if (step + kStages - 1 < steps) fetch(step + kStages - 1);
      commit_copies();
      multiply(step % kStages, static_cast<Operand*>(nullptr));
      if ((step + 1) * kStep % kScaled == 0 || step + 1 == steps) promote(step * kStep / kScaled);
    }
  }
};

__device__ __forceinline__ void put(bf16* to, float first, float second) {
  *reinterpret_cast<BfPair*>(to) = pair(first, second);
}

// Rows of x, of the tokens of the tile.
__device__ void find_rows(const Tiles& in, int tile, int divide, int* rows) {
  for (int r = threadIdx.x; r < in.tokens[tile]; r += kThreads)
    rows[r] = divide ? in.place[in.first[tile] + r] / divide : in.first[tile] + r;
  __syncthreads();
}

template <class Operand>
__device__ void gate_up(const Stored& in, const Tiles& order, const bf16* x, bf16* h, int choices, int stride,
                        unsigned char* memory) {
  using Tile = GroupTile<Operand, true>;
  using Weight = typename Operand::Weight;
  const int slot = order.slot[blockIdx.x], first_row = blockIdx.y * kTileRows / 2;
  if (slot < 0 || first_row >= in.width(slot)) return;
  int* rows = reinterpret_cast<int*>(memory + Tile::kStages * Tile::kStage);
  find_rows(order, blockIdx.x, choices, rows);
  const int tokens = order.tokens[blockIdx.x];
  Tile tile(matrix<Weight>(in, slot, kGate), matrix<Weight>(in, slot, kUp), x, in.H, rows, tokens, first_row, memory);
  tile.run();
  const int width = in.width(slot);
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float *gate = tile.sum[m][2 * n] + 2 * half, *up = tile.sum[m][2 * n + 1] + 2 * half;
        const int token = tile.token + m * 16 + half * 8 + tile.g, column = tile.row_of(tile.row + n * 16) + 2 * tile.t;
        if (token >= tokens || column >= width) continue;
        put(h + size_t(order.first[blockIdx.x] + token) * stride + column, silu(gate[0]) * up[0],
            silu(gate[1]) * up[1]);
      }
}

template <class Operand>
__device__ void down(const Stored& in, const Tiles& order, const float* weight, const bf16* h, bf16* rows_out, int stride,
                     unsigned char* memory) {
  using Tile = GroupTile<Operand, false>;
  using Weight = typename Operand::Weight;
  const int slot = order.slot[blockIdx.x], first_row = blockIdx.y * kTileRows;
  if (slot < 0) return;
  int* rows = reinterpret_cast<int*>(memory + Tile::kStages * Tile::kStage);
  find_rows(order, blockIdx.x, 0, rows);
  const int tokens = order.tokens[blockIdx.x];
  const Weight W = matrix<Weight>(in, slot, kDown);
  Tile tile(W, W, h, stride, rows, tokens, first_row, memory);
  tile.run();
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = tile.token + m * 16 + half * 8 + tile.g, at = order.first[blockIdx.x] + token;
      if (token >= tokens) continue;
      const float by = weight[order.place[at]];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int column = first_row + tile.row + n * 8 + 2 * tile.t;
        if (column < in.H)
          put(rows_out + size_t(at) * in.H + column, by * tile.sum[m][n][2 * half], by * tile.sum[m][n][2 * half + 1]);
      }
    }
}

// Eight values of y a thread.
__device__ void combine(const bf16* rows, const int* position, bf16* y, int choices, int H, long long count) {
  const long long first = (blockIdx.x * (long long)(kThreads) + threadIdx.x) * 8;
  if (first >= count) return;
  const long long token = first / H;
  const int column = int(first % H);
  float sum[8] = {};
  for (int i = 0; i < choices; ++i) {
    const int at = position[token * choices + i];
    if (at < 0) continue;
    float row[8];
    load(rows + size_t(at) * H + column, row);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += row[j];
  }
  store(y + first, sum);
}

}  // namespace

#define ORDER_ARGUMENTS \
  const int *place, const int *tile_slot, const int *tile_first, const int *tile_tokens

extern "C" __global__ void __launch_bounds__(kThreads) moe_experts_count(const int* slot, int* count_of, int places) {
  begin_dependent();
  SHARED_MEMORY(memory);
  count({slot, count_of, nullptr, nullptr, nullptr, nullptr, nullptr, places, 0, 0}, reinterpret_cast<int*>(memory));
}

extern "C" __global__ void __launch_bounds__(kThreads)
    moe_experts_arrange(const int* slot, int* count_of, int* place, int* position, int* tile_slot, int* tile_first,
                        int* tile_tokens, int places, int groups, int tiles) {
  begin_dependent();
  SHARED_MEMORY(memory);
  arrange({slot, count_of, place, position, tile_slot, tile_first, tile_tokens, places, groups, tiles},
          reinterpret_cast<int*>(memory));
}

#define GROUP_KERNELS(Operand, stored)                                                                               \
  extern "C" __global__ void __launch_bounds__(kThreads) moe_experts_group_gate_up_##stored(                         \
      const bf16* x, ORDER_ARGUMENTS, bf16* h, STORED_ARGUMENTS, int choices, int stride) {                          \
    begin_dependent();                                                                                               \
    SHARED_MEMORY(memory);                                                                                           \
    const Stored in = STORED;                                                                                        \
    gate_up<Operand>(in, {place, tile_slot, tile_first, tile_tokens}, x, h, choices, stride, memory);                \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads) moe_experts_group_down_##stored(                            \
      const bf16* h, const float* weight, ORDER_ARGUMENTS, bf16* rows, STORED_ARGUMENTS, int stride) {               \
    begin_dependent();                                                                                               \
    SHARED_MEMORY(memory);                                                                                           \
    const Stored in = STORED;                                                                                        \
    down<Operand>(in, {place, tile_slot, tile_first, tile_tokens}, weight, h, rows, stride, memory);                 \
  }                                                                                                                  \
  EXPORT_KERNEL(moe_experts_group_gate_up_##stored)                                                                  \
  EXPORT_KERNEL(moe_experts_group_down_##stored)

GROUP_KERNELS(Fp8Operand, e4m3)
GROUP_KERNELS(Bf16Operand, bf16)

extern "C" __global__ void __launch_bounds__(kThreads)
    moe_experts_combine(const bf16* rows, const int* position, bf16* y, int choices, int H, long long count) {
  begin_dependent();
  combine(rows, position, y, choices, H, count);
}

EXPORT_KERNEL(moe_experts_count)
EXPORT_KERNEL(moe_experts_arrange)
EXPORT_KERNEL(moe_experts_combine)
ROUTE_KERNEL(bf16, bf16)
