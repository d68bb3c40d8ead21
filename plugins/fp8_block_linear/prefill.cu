// y = x W^T for many tokens: 128 x 128 tiles of y, W as in decode.cu. README.md.
//
// W8A16: x is bf16, weights are widened in registers. W8A8: x is E4M3 with a scale per token and 128 of K, which
// fp8_block_linear_quantize makes. Either way the products of a 128-wide block of K are summed by the tensor cores and
// then scaled into f32 sums. Eight warps, 64 tokens x 32 rows of W each. Grid (token tiles, weight tiles).
#include "../common/fp8_mma.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kBlock = 128, kTile = 128, kThreads = 256;

struct Product {
  const void* x;         // [M, K] bf16 or E4M3
  const float* x_scale;  // [M, ceil(K / 128)], of E4M3
  const uint8_t* weight;
  Parameter scale;
  bf16* y;
  int M, N, K;
};

template <bool Quantized>
struct Tile {
  static constexpr int kStep = Quantized ? 128 : 64, kStages = Quantized ? 2 : 3;  // of K
  static constexpr int kValue = Quantized ? 1 : 2;                                  // bytes of an activation
  static constexpr int kStrideX = 128 + (Quantized ? 16 : 32), kStrideW = kStep + 16;  // bytes; free of bank conflicts
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

  __device__ void fetch(int step) {
    const int stage = step % kStages;
#pragma unroll
    for (int e = threadIdx.x; e < kTile * 8; e += kThreads) {
      const int r = e / 8, k = step * kStep + e % 8 * (16 / kValue);
      const bool is = first_token + r < in.M && k < in.K;
      const size_t from = is ? (size_t(first_token + r) * in.K + k) * kValue : 0;
      copy_async(x_at(stage) + r * kStrideX + e % 8 * 16, static_cast<const unsigned char*>(in.x) + from, is);
    }
#pragma unroll
    for (int e = threadIdx.x; e < kTile * (kStep / 16); e += kThreads) {
      const int r = e / (kStep / 16), k = step * kStep + e % (kStep / 16) * 16;
      const bool is = first_row + r < in.N && k < in.K;
      const size_t from = is ? size_t(first_row + r) * in.K + k : 0;
      copy_async(w_at(stage) + r * kStrideW + e % (kStep / 16) * 16, in.weight + from, is);
    }
  }

  // 32 bytes of K of 16 rows of W: the right operands of two column tiles.
  __device__ __forceinline__ void load_weights(const unsigned char* W, int n, int k, BfPair (&b)[4]) const {
    const int r = row + n * 16 + lane % 8 + lane / 16 * 8;
    load_matrices<false>(b, reinterpret_cast<const bf16*>(W + r * kStrideW + k + lane / 8 % 2 * 16));
  }

  __device__ void multiply_e4m3(int stage) {
#pragma unroll
    for (int k = 0; k < kStep; k += 32) {
      BfPair b[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) load_weights(w_at(stage), n, k, b[n]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        BfPair a[4];
        const int r = token + m * 16 + lane % 16;
        load_matrices<false>(a, reinterpret_cast<const bf16*>(x_at(stage) + r * kStrideX + k + lane / 16 * 16));
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
    const int blocks = (in.K + kBlock - 1) / kBlock;
    const float w = in.scale[blockIdx.y * blocks + block];
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float by = w;
        if (Quantized) by *= in.x_scale[size_t(min(first_token + token + m * 16 + half * 8 + g, in.M - 1)) * blocks + block];
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
        for (int half = 0; half < 2; ++half) {
          const int at = first_token + token + m * 16 + half * 8 + g, column = first_row + row + n * 8 + 2 * t;
          if (at >= in.M || column >= in.N) continue;
          bf16* y = in.y + size_t(at) * in.N + column;
          const float two[2] = {sum[m][n][2 * half], sum[m][n][2 * half + 1]};
          if (in.N % 2 == 0) {
            store(y, two);
          } else {
            y[0] = from_float<bf16>(two[0]);
            if (column + 1 < in.N) y[1] = from_float<bf16>(two[1]);
          }
        }
  }

  __device__ void run() {
    const int steps = (in.K + kStep - 1) / kStep;
#pragma unroll
    for (int step = 0; step < kStages - 1; ++step) {
      if (step < steps) fetch(step);
      commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
      wait_copies<kStages - 2>();
      __syncthreads();
      if (step + kStages - 1 < steps) fetch(step + kStages - 1);
      commit_copies();
      if constexpr (Quantized)
        multiply_e4m3(step % kStages);
      else
        multiply_bf16(step % kStages);
      if ((step + 1) * kStep % kBlock == 0 || step + 1 == steps) promote(step * kStep / kBlock);
    }
    write();
  }
};

// x as E4M3 with scale amax / 448 per token and 128 of K; a warp per such group.
__device__ void quantize(const bf16* x, uint8_t* codes, float* scales, int M, int K) {
  const int blocks = (K + kBlock - 1) / kBlock, group = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (group >= M * blocks) return;
  const int lane = threadIdx.x % 32, k = group % blocks * kBlock + lane * 4;
  const size_t at = size_t(group / blocks) * K + k;
  float values[4] = {}, most = 0.0f;
  if (k < K) load(x + at, values);
#pragma unroll
  for (int i = 0; i < 4; ++i) most = fmaxf(most, fabsf(values[i]));
#pragma unroll
  for (int mask = 16; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, mask));
  const float scale = most > 0.0f ? most / 448.0f : 1.0f;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= uint32_t(to_e4m3(values[i] / scale)) << 8 * i;
  if (k < K) *reinterpret_cast<uint32_t*>(codes + at) = word;
  if (lane == 0) scales[group] = scale;
}

// y = silu(gate) * y, eight values a thread.
__device__ void silu_mul(const bf16* gate, bf16* y, long long count) {
  const long long first = (blockIdx.x * (long long)(blockDim.x) + threadIdx.x) * 8;
  if (first + 8 <= count) {
    float g[8], u[8];
    load(gate + first, g);
    load(y + first, u);
#pragma unroll
    for (int i = 0; i < 8; ++i) u[i] *= g[i] * sigmoid(g[i]);
    store(y + first, u);
    return;
  }
  for (long long i = first; i < count; ++i) {
    const float g = to_float(gate[i]);
    y[i] = from_float<bf16>(to_float(y[i]) * g * sigmoid(g));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    fp8_block_linear_prefill_w8a16(const bf16* x, const uint8_t* weight, const void* scale, int bf16_scales, bf16* y, int M,
                                   int N, int K) {
  SHARED_MEMORY(memory);
  const Product in = {x, nullptr, weight, {scale, bf16_scales}, y, M, N, K};
  Tile<false>(in, memory).run();
}

extern "C" __global__ void __launch_bounds__(kThreads)
    fp8_block_linear_prefill_w8a8(const uint8_t* codes, const float* x_scale, const uint8_t* weight, const void* scale,
                                  int bf16_scales, bf16* y, int M, int N, int K) {
  SHARED_MEMORY(memory);
  const Product in = {codes, x_scale, weight, {scale, bf16_scales}, y, M, N, K};
  Tile<true>(in, memory).run();
}

extern "C" __global__ void __launch_bounds__(kThreads)
    fp8_block_linear_quantize(const bf16* x, uint8_t* codes, float* scales, int M, int K) {
  quantize(x, codes, scales, M, K);
}

extern "C" __global__ void __launch_bounds__(kThreads) fp8_block_linear_silu_mul(const bf16* gate, bf16* y, long long count) {
  silu_mul(gate, y, count);
}

EXPORT_KERNEL(fp8_block_linear_silu_mul)
EXPORT_KERNEL(fp8_block_linear_prefill_w8a16)
EXPORT_KERNEL(fp8_block_linear_prefill_w8a8)
EXPORT_KERNEL(fp8_block_linear_quantize)
