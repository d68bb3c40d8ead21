// Activations rounded to E4M3 for the W8A8 kernels, in the order in which both read them.
//
// Codes are tiles of 128 tokens and 128 of K, [token tiles][blocks of K][128][128 bytes], the 16-byte piece i of row r
// at piece i ^ r % 8; scales are [blocks of K][tokens]. Tokens are padded to whole pairs of tiles, K to whole blocks.
#pragma once
#include "../common/fp8.cuh"
#include "../common/warp.cuh"

constexpr int kBlock = 128, kTile = 128, kTileBytes = kTile * kBlock;

__device__ __forceinline__ int padded_tokens(int M) { return (M + 2 * kTile - 1) / (2 * kTile) * (2 * kTile); }
// Where the 16-byte piece of a row of 128 bytes is, in a tile.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * kBlock + (piece ^ row % 8) * 16; }

// x [M, K] with scale amax / 448 per token and 128 of K; a warp per such group, padding included.
__device__ inline void quantize(const bf16* x, unsigned char* codes, float* scales, int M, int K) {
  const int blocks = (K + kBlock - 1) / kBlock, tokens = padded_tokens(M);
  const int group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (group >= tokens * blocks) return;
  const int lane = threadIdx.x % 32, token = group / blocks, block = group % blocks, k = block * kBlock + lane * 4;
  float values[4] = {}, most = 0.0f;
  if (token < M && k < K) load(x + size_t(token) * K + k, values);
#pragma unroll
  for (int i = 0; i < 4; ++i) most = fmaxf(most, fabsf(values[i]));
#pragma unroll
  for (int mask = 16; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, mask));
  const float scale = most > 0.0f ? most / 448.0f : 1.0f;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= uint32_t(to_e4m3(values[i] / scale)) << 8 * i;
  const size_t tile = (size_t(token / kTile) * blocks + block) * kTileBytes;
  *reinterpret_cast<uint32_t*>(codes + tile + swizzled(token % kTile, lane / 4) + lane % 4 * 4) = word;
  if (lane == 0) scales[size_t(block) * tokens + token] = scale;
}

#define QUANTIZE_KERNEL                                                                       \
  extern "C" __global__ void __launch_bounds__(256)                                           \
      fp8_block_linear_quantize(const bf16* x, unsigned char* codes, float* scales, int M, int K) { \
    begin_dependent();                                                                              \
    quantize(x, codes, scales, M, K);                                                         \
  }                                                                                           \
  EXPORT_KERNEL(fp8_block_linear_quantize)
