// The grouped products of many tokens: tiles of 64 places times an expert's matrices. order.cuh has what surrounds them.
#include "../common/fp8_mma.cuh"
#include "order.cuh"

namespace {

constexpr int kThreads = 256, kTokens = 64, kTileRows = 128;  // of a tile: tokens, and rows of the weights

// How weights and rows of x lie in shared memory and become operands, for 32 of K of 16 rows.
struct Fp8Operand {
  using Weight = BlockFp8;
  static constexpr int kBytes = 1, kStride = 80, kBytesX = 2, kStrideX = 160;
};
struct Fp8Fp8Operand {
  using Weight = BlockFp8;
  static constexpr int kBytes = 1, kStride = 80, kBytesX = 1, kStrideX = 80;
};
struct Bf16Operand {
  using Weight = Bf16;
  static constexpr int kBytes = 2, kStride = 144, kBytesX = 2, kStrideX = 144;
};

// 64 rows of x times 128 rows of two matrices (Gated: 64 of each) or of one. Eight warps, 32 x 32 each.
template <class Operand, bool Gated>
struct GroupTile {
  using Weight = typename Operand::Weight;
  static constexpr int kStep = 64, kStages = 3, kScaled = 128;  // of K
  static constexpr int kStageX = kTokens * Operand::kStrideX, kStage = kStageX + kTileRows * Operand::kStride;
  static constexpr int kPieces = kStep * Operand::kBytes / 16;  // of a row of W
  static constexpr int kPiecesX = kStep * Operand::kBytesX / 16;
  static constexpr bool kQuantized = Operand::kBytesX == 1;
  static constexpr int kCopies = kTileRows * kPieces / kThreads, kCopiesX = kTokens * kPiecesX / kThreads;

  const Weight upper, lower;
  const unsigned char *from_w[kCopies], *from_x[kCopiesX];  // this thread's pieces, at the begin of K; null where none is
  const float* x_scale;  // of E4M3
  const int* rows;       // of x, of each token of the tile
  int scale_blocks;      // of a row of x
  unsigned char* memory;
  int tokens, first_row, lane, warp, g, t, token, row;  // token, row: this warp's part
  float sum[2][4][4] = {}, part[2][4][4] = {};

  // Rows of x are `stride` values apart.
  __device__ GroupTile(const Weight& upper, const Weight& lower, const void* x, const float* x_scale, int stride,
                       const int* rows, int tokens, int first_row, unsigned char* memory)
      : upper(upper), lower(lower), x_scale(x_scale), rows(rows), scale_blocks((stride + kScaled - 1) / kScaled),
        memory(memory), tokens(tokens), first_row(first_row), lane(threadIdx.x % 32), warp(threadIdx.x / 32),
        g(lane / 4), t(lane % 4), token(warp / 4 * 32), row(warp % 4 * 32) {
#pragma unroll
    for (int i = 0; i < kCopiesX; ++i) {
      const int e = threadIdx.x + i * kThreads, r = e / kPiecesX;
      const size_t begin = r < tokens ? size_t(rows[r]) * stride * Operand::kBytesX + e % kPiecesX * 16 : 0;
      from_x[i] = r < tokens ? static_cast<const unsigned char*>(x) + begin : nullptr;
    }
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int e = threadIdx.x + i * kThreads, r = e / kPieces;
      Weight W = upper;
      if (matrix_of(r)) W.become(lower);
      const unsigned char* from = static_cast<const unsigned char*>(W.at(row_of(r), 0)) + e % kPieces * 16;
      from_w[i] = row_of(r) < W.N ? from : nullptr;
    }
  }

  __device__ unsigned char* x_at(int stage) const { return memory + stage * kStage; }
  __device__ unsigned char* w_at(int stage) const { return x_at(stage) + kStageX; }

  // Row r of the tile is row `row_of(r)` of matrix `matrix_of(r)`: gated ones alternate by eight.
  __device__ static int matrix_of(int r) { return Gated ? r / 8 % 2 : 0; }
  __device__ int row_of(int r) const { return first_row + (Gated ? r / 16 * 8 + r % 8 : r); }

  __device__ void fetch(int step) {
    const int stage = step % kStages, first = step * kStep;
#pragma unroll
    for (int i = 0; i < kCopiesX; ++i) {
      const int e = threadIdx.x + i * kThreads, r = e / kPiecesX, piece = e % kPiecesX;
      const bool is = from_x[i] && first + piece * 16 / Operand::kBytesX < upper.K;
      const void* from = is ? from_x[i] + first * Operand::kBytesX : reinterpret_cast<const unsigned char*>(upper.weight);
      copy_async(x_at(stage) + r * Operand::kStrideX + piece * 16, from, is);
    }
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int e = threadIdx.x + i * kThreads, r = e / kPieces, piece = e % kPieces;
      const bool is = from_w[i] && first + piece * 16 / Operand::kBytes < upper.K;
      const void* from = is ? from_w[i] + first * Operand::kBytes : reinterpret_cast<const unsigned char*>(upper.weight);
      copy_async(w_at(stage) + r * Operand::kStride + piece * 16, from, is);
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
          if (m && token + 16 >= tokens) break;  // no token there
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
  __device__ __forceinline__ void multiply(int stage, Fp8Fp8Operand*) {
#pragma unroll(kConvertsE4m3 ? 1 : kStep / 32)
    for (int k = 0; k < kStep; k += 32) {
      BfPair b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_weights(stage, n, k, b[n]);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if (m && token + 16 >= tokens) break;
        BfPair a[4];
        const unsigned char* from = x_at(stage) + (token + m * 16 + lane % 16) * Operand::kStrideX + k + lane / 16 * 16;
        load_matrices<false>(a, reinterpret_cast<const bf16*>(from));
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t right[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          if constexpr (kConvertsE4m3)  // f16 products of the assembler's making spill here, and are no faster
            mma_e4m3_widened(part[m][n], a, right);
          else
            mma_e4m3(part[m][n], a, right);
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
        if (m && token + 16 >= tokens) break;
        BfPair a[4];
        const unsigned char* from = x_at(stage) + (token + m * 16 + lane % 16) * Operand::kStrideX + (k + lane / 16 * 8) * 2;
        load_matrices<false>(a, reinterpret_cast<const bf16*>(from));
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const BfPair right[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          mma(sum[m][n], a, right);
        }
      }
    }
  }

  // The scales of a block of K: of either matrix, whose rows in the tile lie in one block of it, and of this lane's tokens.
  struct Scales {
    float matrix[2], token[2][2];
  };
  __device__ __forceinline__ Scales scales(int block) const {
    Scales to = {{upper.scale_of(first_row, block), Gated ? lower.scale_of(first_row, block) : 0.0f}};
    if constexpr (kQuantized) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = token + m * 16 + half * 8 + g;
          to.token[m][half] = r < tokens ? x_scale[size_t(rows[r]) * scale_blocks + block] : 0.0f;
        }
    }
    return to;
  }

  // The sums of a scaled block of K, to the sums of the tile.
  __device__ __forceinline__ void promote(const Scales& scales) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float by = scales.matrix[Gated ? n % 2 : 0];  // as matrix_of(row + n * 8)
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[m][n][i] = fmaf(kQuantized ? by * scales.token[m][i / 2] : by, part[m][n][i], sum[m][n][i]);
          part[m][n][i] = 0.0f;
        }
    }
  }

  __device__ void run() {
    const int steps = (upper.K + kStep - 1) / kStep;
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
      if constexpr (Operand::kBytes == 1) {
        const Scales by = scales(step * kStep / kScaled);  // on their way during the products
        if (token < tokens) multiply(step % kStages, static_cast<Operand*>(nullptr));
        if ((step + 1) * kStep % kScaled == 0 || step + 1 == steps) promote(by);
      } else if (token < tokens) {
        multiply(step % kStages, static_cast<Operand*>(nullptr));
      }
    }
  }
};

// Rows of x, of the tokens of the tile.
__device__ void find_rows(const Tiles& in, int tile, int divide, int* rows) {
  for (int r = threadIdx.x; r < in.tokens[tile]; r += kThreads)
    rows[r] = divide ? in.place[in.first[tile] + r] / divide : in.first[tile] + r;
  __syncthreads();
}

template <class Operand>
__device__ void gate_up(const Stored& in, const Tiles& order, const void* x, const float* x_scale, bf16* h, int choices,
                        int stride, unsigned char* memory) {
  using Tile = GroupTile<Operand, true>;
  using Weight = typename Operand::Weight;
  const int slot = order.slot[blockIdx.x], first_row = blockIdx.y * kTileRows / 2;
  if (slot < 0 || first_row >= in.width(slot)) return;
  int* rows = reinterpret_cast<int*>(memory + Tile::kStages * Tile::kStage);
  find_rows(order, blockIdx.x, choices, rows);
  const int tokens = order.tokens[blockIdx.x];
  Tile tile(matrix<Weight>(in, slot, kGate), matrix<Weight>(in, slot, kUp), x, x_scale, in.H, rows, tokens, first_row,
            memory);
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
__device__ void down(const Stored& in, const Tiles& order, const float* weight, const void* h, const float* h_scale,
                     bf16* rows_out, int stride, unsigned char* memory) {
  using Tile = GroupTile<Operand, false>;
  using Weight = typename Operand::Weight;
  const int slot = order.slot[blockIdx.x], first_row = blockIdx.y * kTileRows;
  if (slot < 0) return;
  int* rows = reinterpret_cast<int*>(memory + Tile::kStages * Tile::kStage);
  find_rows(order, blockIdx.x, 0, rows);
  const int tokens = order.tokens[blockIdx.x];
  const Weight W = matrix<Weight>(in, slot, kDown);
  Tile tile(W, W, h, h_scale, stride, rows, tokens, first_row, memory);
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

}  // namespace

#define GROUP_KERNELS(Operand, stored)                                                                               \
  extern "C" __global__ void __launch_bounds__(kThreads, 2) moe_experts_group_gate_up_##stored(                         \
      const void* x, const float* x_scale, ORDER_ARGUMENTS, bf16* h, STORED_ARGUMENTS, int choices, int stride) {    \
    begin_dependent();                                                                                               \
    SHARED_MEMORY(memory);                                                                                           \
    const Stored in = STORED;                                                                                        \
    gate_up<Operand>(in, {place, tile_slot, tile_first, tile_tokens}, x, x_scale, h, choices, stride, memory);       \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads, 2) moe_experts_group_down_##stored(                            \
      const void* h, const float* h_scale, const float* weight, ORDER_ARGUMENTS, bf16* rows, STORED_ARGUMENTS,       \
      int stride) {                                                                                                  \
    begin_dependent();                                                                                               \
    SHARED_MEMORY(memory);                                                                                           \
    const Stored in = STORED;                                                                                        \
    down<Operand>(in, {place, tile_slot, tile_first, tile_tokens}, weight, h, h_scale, rows, stride, memory);        \
  }                                                                                                                  \
  EXPORT_KERNEL(moe_experts_group_gate_up_##stored)                                                                  \
  EXPORT_KERNEL(moe_experts_group_down_##stored)

GROUP_KERNELS(Fp8Operand, e4m3)
GROUP_KERNELS(Fp8Fp8Operand, w8a8)
GROUP_KERNELS(Bf16Operand, bf16)
