// y = x W^T for many tokens: 128 x 128 tiles of y, W as in decode.cu. README.md.
//
// W8A16: x is bf16, weights are widened in registers. W8A8: x is E4M3 with a scale per token and 128 of K, as
// fp8_block_linear_quantize leaves it. Either way the products of a 128-wide block of K are summed by the tensor cores
// and then scaled into f32 sums. Eight warps, 64 tokens x 32 rows of W each. Grid (token tiles, weight tiles, splits).
#include "../common/fp8_mma.cuh"
#include "activations.cuh"
#include "output.cuh"
#include "projections.cuh"

namespace {

constexpr int kThreads = 256;

struct Product {
  const void* x;         // [M, K] bf16, or tiles of E4M3
  const float* x_scale;  // of E4M3
  const uint8_t* weight;
  Parameter scale;
  Output out;
  int K, blocks;  // of K
};

template <bool Quantized>
struct Tile {
  static constexpr int kStep = Quantized ? 128 : 64, kStages = 3;                     // of K
  static constexpr int kStrideX = Quantized ? 128 : 160, kStrideW = Quantized ? 128 : 80;  // bytes
  static constexpr int kStage = kTile * (kStrideX + kStrideW);

  const Product& in;
  unsigned char* memory;
  int lane, warp, g, t, first_token, first_row, token, row;  // token, row: this warp's part of the tile
  float sum[4][4][4] = {}, part[4][4][4] = {};

  __device__ Tile(const Product& in, unsigned char* memory)
      : in(in), memory(memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32), g(lane / 4), t(lane % 4),
        first_token(blockIdx.x * kTile), first_row(blockIdx.y * kTile), token(warp / 4 * 64), row(warp % 4 * 32) {}

  __device__ unsigned char* x_at(int stage) const { return memory + stage * kStage; }
  __device__ unsigned char* w_at(int stage) const { return x_at(stage) + kTile * kStrideX; }

  // Bytes from the start of a tile to a 16-byte piece of a row: free of bank conflicts, by the swizzle or by the stride.
  __device__ static int at(int row, int piece, int stride) { return Quantized ? swizzled(row, piece) : row * stride + piece * 16; }

  __device__ void fetch_activations(int step, int stage) {
#pragma unroll
    for (int e = threadIdx.x; e < kTile * 8; e += kThreads) {
      if (Quantized) {
        const size_t tile = (size_t(blockIdx.x) * in.blocks + step) * kTileBytes;
        copy_async(x_at(stage) + e * 16, static_cast<const unsigned char*>(in.x) + tile + e * 16, true);
      } else {
        const int r = e / 8, k = step * kStep + e % 8 * 8;
        const bool is = first_token + r < in.out.M && k < in.K;
        const size_t from = is ? size_t(first_token + r) * in.K + k : 0;
        copy_async(x_at(stage) + at(r, e % 8, kStrideX), static_cast<const bf16*>(in.x) + from, is);
      }
    }
  }

  __device__ void fetch(int step) {
    const int stage = step % kStages;
    fetch_activations(step, stage);
#pragma unroll
    for (int e = threadIdx.x; e < kTile * (kStep / 16); e += kThreads) {
      const int r = e / (kStep / 16), piece = e % (kStep / 16), k = step * kStep + piece * 16;
      const bool is = first_row + r < in.out.N && k < in.K;
      const size_t from = is ? size_t(first_row + r) * in.K + k : 0;
      copy_async(w_at(stage) + at(r, piece, kStrideW), in.weight + from, is);
    }
  }

  // 32 bytes of K of 16 rows of W: the right operands of two column tiles.
  __device__ __forceinline__ void load_weights(const unsigned char* W, int n, int k, BfPair (&b)[4]) const {
    const int r = row + n * 16 + lane % 8 + lane / 16 * 8;
    load_matrices<false>(b, reinterpret_cast<const bf16*>(W + at(r, k / 16 + lane / 8 % 2, kStrideW)));
  }

  __device__ void multiply_e4m3(int stage) {
#pragma unroll(kConvertsE4m3 ? 1 : kStep / 32)
    for (int k = 0; k < kStep; k += 32) {
      BfPair b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_weights(w_at(stage), n, k, b[n]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        BfPair a[4];
        const int r = token + m * 16 + lane % 16;
        load_matrices<false>(a, reinterpret_cast<const bf16*>(x_at(stage) + at(r, k / 16 + lane / 16, kStrideX)));
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t right[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          mma_e4m3(part[m][n], a, right);
        }
      }
    }
  }

  // A lane holds values 4 t .. 4 t + 3 of each 16 of K, in W (as ldmatrix deals bytes) and so in x.
  __device__ void multiply_bf16(int stage) {
#pragma unroll
    for (int k = 0; k < kStep; k += 32) {
      BfPair b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_weights(w_at(stage), n, k, b[n]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        BfPair right[4][2];
#pragma unroll
        for (int n = 0; n < 4; ++n) e4m3_to_bf16(b[n / 2][n % 2 * 2 + half], right[n][0], right[n][1]);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const unsigned char* x = x_at(stage) + (token + m * 16 + g) * kStrideX + (k + half * 16 + 4 * t) * 2;
          const uint2 top = *reinterpret_cast<const uint2*>(x), bottom = *reinterpret_cast<const uint2*>(x + 8 * kStrideX);
          const BfPair a[4] = {top.x, bottom.x, top.y, bottom.y};
#pragma unroll
          for (int n = 0; n < 4; ++n) mma(part[m][n], a, right[n]);
        }
      }
    }
  }

  // The block's sums, scaled, to the sums of the tile.
  __device__ void promote(int block) {
    const float w = in.scale[blockIdx.y * in.blocks + block];
    const float* x_scale = in.x_scale + size_t(block) * padded_tokens(in.out.M) + first_token + token + g;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float by = w;
        if (Quantized) by *= x_scale[m * 16 + half * 8];
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            sum[m][n][i] = fmaf(by, part[m][n][i], sum[m][n][i]);
            part[m][n][i] = 0.0f;
          }
      }
  }

  __device__ void write() const {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          in.out.put(blockIdx.z, first_token + token + m * 16 + half * 8 + g, first_row + row + n * 8 + 2 * t,
                     sum[m][n][2 * half], sum[m][n][2 * half + 1]);
  }

  __device__ void run() {
    const int each = (in.blocks + gridDim.z - 1) / gridDim.z * (kBlock / kStep);
    const int first = blockIdx.z * each, stop = min(first + each, (in.K + kStep - 1) / kStep);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      if (first + i < stop) fetch(first + i);
      commit_copies();
    }
    for (int step = first; step < stop; ++step) {
      wait_copies<kStages - 2>();
      __syncthreads();
      if (step + kStages - 1 < stop) fetch(step + kStages - 1);
      commit_copies();
      if constexpr (Quantized)
        multiply_e4m3(step % kStages);
      else
        multiply_bf16(step % kStages);
      if ((step + 1) * kStep % kBlock == 0 || step + 1 == stop) promote(step * kStep / kBlock);
    }
    write();
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    fp8_block_linear_prefill_w8a16(const bf16* x, const uint8_t* weight, const void* scale, int bf16_scales, bf16* y,
                                   float* partial, int M, int N, int K) {
  begin_dependent();
  SHARED_MEMORY(memory);
  const Product in = {x, nullptr, weight, {scale, bf16_scales}, {y, partial, M, N}, K, (K + kBlock - 1) / kBlock};
  Tile<false>(in, memory).run();
}

extern "C" __global__ void __launch_bounds__(kThreads)
    fp8_block_linear_prefill_w8a8(const unsigned char* codes, const float* x_scale, const uint8_t* weight, const void* scale,
                                  int bf16_scales, bf16* y, float* partial, int M, int N, int K) {
  begin_dependent();
  SHARED_MEMORY(memory);
  const Product in = {codes, x_scale, weight, {scale, bf16_scales}, {y, partial, M, N}, K, (K + kBlock - 1) / kBlock};
  Tile<true>(in, memory).run();
}

EXPORT_KERNEL(fp8_block_linear_prefill_w8a16)
EXPORT_KERNEL(fp8_block_linear_prefill_w8a8)
QUANTIZE_KERNEL
ADD_SPLITS_KERNEL(fp8_block_linear)
SILU_MUL_KERNEL(fp8_block_linear)
PROJECTIONS_KERNEL(bf16, bf16, 1, 2)
PROJECTIONS_KERNEL(bf16, bf16, 2, 2)
PROJECTIONS_KERNEL(bf16, bf16, 4, 1)
