// Activations rounded to E4M3 for the W8A8 kernels, in the order in which both read them.
//
// Codes are tiles of 128 tokens and 128 of K, [token tiles][blocks of K][128][128 bytes], the 16-byte piece i of row r
// at piece i ^ r % 8; scales are [blocks of K][tokens]. Tokens are padded to whole pairs of tiles, K to whole blocks.
#pragma once
#include "../common/quantize.cuh"

constexpr int kBlock = 128, kTile = 128, kTileBytes = kTile * kBlock;

__device__ __forceinline__ int padded_tokens(int M) { return (M + 2 * kTile - 1) / (2 * kTile) * (2 * kTile); }

constexpr int kTokensAtOnce = 16, kQuantizeTokens = 2 * kTokensAtOnce;  // of 256 threads

// x [M, K] with scale amax / 448 per token and 128 of K, padding included: 16 lanes a group, eight values each. A block has
// the same 128 of K of 32 tokens, so that it writes whole lines of codes and of scales; grid [blocks of K, tokens / 32].
__device__ inline void quantize(const bf16* x, unsigned char* codes, float* scales, int M, int K) {
  const int blocks = gridDim.x, block = blockIdx.x, lane = threadIdx.x % kQuantizeLanes, k = block * kBlock + lane * 8;
  const int first = blockIdx.y * kQuantizeTokens + threadIdx.x / kQuantizeLanes;
  float values[2][8] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first + i * kTokensAtOnce;
    if (token < M && k < K) load(x + size_t(token) * K + k, values[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first + i * kTokensAtOnce;
    float scale;
    const uint2 word = quantize_eight(values[i], scale);
    const size_t tile = (size_t(token / kTile) * blocks + block) * kTileBytes;
    *reinterpret_cast<uint2*>(codes + tile + swizzled(token % kTile, lane / 2) + lane % 2 * 8) = word;
    if (lane == 0) scales[size_t(block) * padded_tokens(M) + token] = scale;
  }
}

#define QUANTIZE_KERNEL                                                                       \
  extern "C" __global__ void __launch_bounds__(256)                                           \
      fp8_block_linear_quantize(const bf16* x, unsigned char* codes, float* scales, int M, int K) { \
    begin_dependent();                                                                              \
    quantize(x, codes, scales, M, K);                                                         \
  }                                                                                           \
  EXPORT_KERNEL(fp8_block_linear_quantize)
