// Activations rounded to E4M3 for the W8A8 kernels, in the order in which both read them.
//
// Codes are tiles of 128 tokens and 128 of K, [token tiles][blocks of K][128][128 bytes], the 16-byte piece i of row r
// at piece i ^ r % 8; scales are [blocks of K][tokens]. Tokens are padded to whole pairs of tiles, K to whole blocks.
#pragma once
#include "../common/fp8.cuh"
#include "../common/vector.cuh"
#include "../common/warp.cuh"

constexpr int kBlock = 128, kTile = 128, kTileBytes = kTile * kBlock;

__device__ __forceinline__ int padded_tokens(int M) { return (M + 2 * kTile - 1) / (2 * kTile) * (2 * kTile); }

// x / y, rounded to nearest, from 1 / y: the remainder of the first guess corrects it. For bf16 x, and y a scale of such, it
// is what a division of ten instructions gives: a test takes all mantissas.
__device__ __forceinline__ float divide(float x, float y, float inverse) {
  const float guess = x * inverse;
  return fmaf(-fmaf(guess, y, -x), inverse, guess);  // the signs keep that of -0
}

constexpr int kLanes = kBlock / 8, kTokensAtOnce = 16, kQuantizeTokens = 2 * kTokensAtOnce;  // of 256 threads

// x [M, K] with scale amax / 448 per token and 128 of K, padding included: 16 lanes a group, eight values each. A block has
// the same 128 of K of 32 tokens, so that it writes whole lines of codes and of scales; grid [blocks of K, tokens / 32].
__device__ inline void quantize(const bf16* x, unsigned char* codes, float* scales, int M, int K) {
  const int blocks = gridDim.x, block = blockIdx.x, lane = threadIdx.x % kLanes, k = block * kBlock + lane * 8;
  const int first = blockIdx.y * kQuantizeTokens + threadIdx.x / kLanes;
  float values[2][8] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first + i * kTokensAtOnce;
    if (token < M && k < K) load(x + size_t(token) * K + k, values[i]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = first + i * kTokensAtOnce;
    float(&mine)[8] = values[i], most = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) most = fmaxf(most, fabsf(mine[j]));
#pragma unroll
    for (int mask = kLanes / 2; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, mask));
    const float scale = most > 0.0f ? most / 448.0f : 1.0f;
    // Powers of two keep scale, its inverse and remainders normal numbers; a quotient that they change would be 0 in E4M3.
    const float shift = scale < 0x1p-60f ? 0x1p96f : 1.0f, by = scale * shift, inverse = 1.0f / by;
#pragma unroll
    for (int j = 0; j < 8; ++j) mine[j] = divide(mine[j] * shift, by, inverse);
    const uint2 word = {to_e4m3x4(mine[0], mine[1], mine[2], mine[3]), to_e4m3x4(mine[4], mine[5], mine[6], mine[7])};
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
