// The tile of the experts' kernels for few tokens, and the router's product.
#pragma once
#include "experts.cuh"

constexpr int kHalf = kRows / 2;

// 16 rows: eight of one matrix and eight of another, times up to 8 MT rows of x, wherever they lie.
template <class Act, class Weight, int MT>
struct ExpertTile {
  static constexpr int kTerms = sizeof(Act) == 2 ? 1 : 3, kBlock = Weight::kBlock, kChunk = Weight::kChunk, kAhead = 3;

  struct Piece {
    uint4 at[2][2];
    float scale[2];
  };

  const Weight W[2];
  const Act* x[MT];  // of this lane's tokens, null where there is none
  int tokens, g, t, row[2];
  float sum[MT][4] = {};

  __device__ ExpertTile(const Weight& upper, const Weight& lower, int upper_row, int lower_row, int tokens)
      : W{upper, lower}, tokens(tokens), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4),
        row{min(upper_row + g, upper.N - 1), min(lower_row + g, lower.N - 1)} {
#pragma unroll
    for (int m = 0; m < MT; ++m) x[m] = nullptr;
  }

  __device__ __forceinline__ int column(int block, int half) const { return block * kBlock + half * kBlock / 2 + kChunk * t; }

  __device__ __forceinline__ void fetch(int block, Piece& w) const {
    const uint4 zero = {0, 0, 0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        w.at[half][i] = column(block, i) < W[half].K ? load_once(W[half].at(row[half], column(block, i))) : zero;
      w.scale[half] = W[half].scale_of(row[half], block);
    }
  }

  __device__ __forceinline__ void multiply(int block, const Piece& w) {
    float part[MT][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 top = w.at[0][i], bottom = w.at[1][i];
      const uint32_t words[2][4] = {{top.x, top.y, top.z, top.w}, {bottom.x, bottom.y, bottom.z, bottom.w}};
      BfPair a[kChunk / 4][4];
#pragma unroll
      for (int j = 0; j < kChunk / 4; ++j) {
        Weight::unpack(words[0], j, a[j][0], a[j][2]);
        Weight::unpack(words[1], j, a[j][1], a[j][3]);
      }
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        if (8 * m >= tokens) break;
        Activations<kChunk / 4, kTerms> b = {};
        if (x[m] && column(block, i) < W[0].K) b.get(x[m] + column(block, i));
#pragma unroll
        for (int j = 0; j < kChunk / 4; ++j)
#pragma unroll
          for (int term = 0; term < kTerms; ++term) mma(part[m], a[j], b.at[j][term]);
      }
    }
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][i] = fmaf(w.scale[i / 2], part[m][i], sum[m][i]);
  }

  // Blocks first, first + step, ... of K, with kAhead - 1 of them on their way while one is multiplied.
  __device__ void run(int first, int step) {
    const int blocks = (W[0].K + kBlock - 1) / kBlock;
    Piece w[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (first + i * step < blocks) fetch(first + i * step, w[i]);
    for (int block = first; block < blocks; block += kAhead * step) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int now = block + i * step, next = now + kAhead * step;
        if (now >= blocks) break;
        multiply(now, w[i]);
        if (next < blocks) fetch(next, w[i]);
      }
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

// logits [M, experts] = x W^T. Grid (tokens in runs of 8 MT, rows in sixteens); the warps split K.
template <class Act, int MT>
__device__ void router(const Act* x, const Bf16& W, float* logits, int M, unsigned char* memory) {
  float* tiles = reinterpret_cast<float*>(memory);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, first_token = blockIdx.x * 8 * MT;
  const int first_row = blockIdx.y * kRows, tokens = min(8 * MT, M - first_token);
  ExpertTile<Act, Bf16, MT> tile(W, W, first_row, first_row + kHalf, tokens);
#pragma unroll
  for (int m = 0; m < MT; ++m)
    if (8 * m + tile.g < tokens) tile.x[m] = x + size_t(first_token + 8 * m + tile.g) * W.K;
  tile.run(warp, warps);
  tile.each([&](int row, int token, float value) { tiles[(warp * 8 * MT + token) * kTileStride + row] = value; });
  __syncthreads();
  for (int e = threadIdx.x; e < tokens * kRows; e += blockDim.x) {
    const int row = e % kRows, token = e / kRows;
    float sum = 0.0f;
    for (int part = 0; part < warps; ++part) sum += tiles[(part * 8 * MT + token) * kTileStride + row];
    if (first_row + row < W.N) logits[size_t(first_token + token) * W.N + first_row + row] = sum;
  }
}

#define ROUTER_KERNEL(Act, suffix, tiles)                                                                      \
  extern "C" __global__ void __launch_bounds__(256) moe_experts_router_##suffix##_m##tiles(                    \
      const Act* x, const bf16* weight, float* logits, int M, int experts, int H) {                            \
    SHARED_MEMORY(memory);                                                                                     \
    router<Act, tiles>(x, {weight, experts, H}, logits, M, memory);                                            \
  }                                                                                                            \
  EXPORT_KERNEL(moe_experts_router_##suffix##_m##tiles)
