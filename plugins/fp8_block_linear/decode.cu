// y = x W^T for few tokens, W stored as the checkpoint stores it: [N, K] E4M3 and a scale per 128 x 128 block.
//
// A warp owns 16 rows of W and every `splits`-th 128-wide block of K. Weights go from memory to mma's left operand
// without shared memory: a lane reads 16 consecutive bytes of a row, and since a sum over K may be taken in any
// order, the lane's k-th value is whatever k-th value of x the right operand is given. The block's warps add their
// sums in shared memory, in the order of K: the result does not depend on timing.
// Grid (ceil(N / (16 row_groups)), ceil(M / (8 MT))).
#include "../common/fp8.cuh"
#include "../common/vector.cuh"

namespace {

constexpr int kBlock = 128, kRows = 16, kStride = 20, kAhead = 2;

template <class Act>
struct Linear {
  const Act* x;           // [M, K]
  const uint8_t* weight;  // [N, K]
  Parameter scale;        // [ceil(N / 128), ceil(K / 128)]
  Act* y;                 // [M, N]
  int M, N, K, row_groups;
};

// 16 consecutive activations of one token as right operands of four products, in `Terms` bf16 terms.
template <int Terms>
struct Activations {
  BfPair at[4][Terms][2];

  __device__ __forceinline__ void get(const bf16* from) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 eight = *reinterpret_cast<const uint4*>(from + 8 * i);
      at[2 * i][0][0] = eight.x, at[2 * i][0][1] = eight.y;
      at[2 * i + 1][0][0] = eight.z, at[2 * i + 1][0][1] = eight.w;
    }
  }
  __device__ __forceinline__ void get(const float* from) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float four[4];
      load(from + 4 * i, four);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        BfPair parts[Terms];
        split<Terms>(four[2 * pair], four[2 * pair + 1], parts);
#pragma unroll
        for (int term = 0; term < Terms; ++term) at[i][term][pair] = parts[term];
      }
    }
  }
};

// 16 rows of one block of W: rows g and g + 8, the first and second 64 columns.
struct Weights {
  uint4 at[2][2];
  float scale;
};

template <class Act, int MT>
struct WarpTile {
  static constexpr int kTerms = sizeof(Act) == 2 ? 1 : 3;
  const Linear<Act>& in;
  int g, t, first_row, first_token;
  float sum[MT][4] = {};

  __device__ WarpTile(const Linear<Act>& in, int first_row, int first_token)
      : in(in), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4), first_row(first_row), first_token(first_token) {}

  __device__ __forceinline__ void fetch(int block, Weights& w) const {
    const uint4 zero = {0, 0, 0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint8_t* row = in.weight + size_t(min(first_row + g + 8 * half, in.N - 1)) * in.K;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = block * kBlock + 64 * i + 16 * t;
        w.at[half][i] = k < in.K ? load_once(row + k) : zero;
      }
    }
    w.scale = in.scale[min(first_row, in.N - 1) / kBlock * ((in.K + kBlock - 1) / kBlock) + block];
  }

  __device__ __forceinline__ void multiply(int block, const Weights& w) {
    float part[MT][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 top = w.at[0][i], bottom = w.at[1][i];
      const uint32_t words[2][4] = {{top.x, top.y, top.z, top.w}, {bottom.x, bottom.y, bottom.z, bottom.w}};
      BfPair a[4][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        e4m3_to_bf16(words[0][j], a[j][0], a[j][2]);
        e4m3_to_bf16(words[1][j], a[j][1], a[j][3]);
      }
      const int k = block * kBlock + 64 * i + 16 * t;
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        Activations<kTerms> x = {};
        const int token = first_token + 8 * m + g;
        if (token < in.M && k < in.K) x.get(in.x + size_t(token) * in.K + k);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int term = 0; term < kTerms; ++term) mma(part[m], a[j], x.at[j][term]);
      }
    }
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][i] = fmaf(w.scale, part[m][i], sum[m][i]);
  }

  // Blocks first, first + step, ... of K, with kAhead - 1 of them on their way while one is multiplied.
  __device__ void run(int first, int step) {
    const int blocks = (in.K + kBlock - 1) / kBlock;
    Weights w[kAhead];
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

  // Element (row, token) of the tile goes to tile[token * kStride + row].
  __device__ void save(float* tile) const {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) tile[(8 * m + 2 * t + i % 2) * kStride + g + i / 2 * 8] = sum[m][i];
  }
};

template <class Act, int MT>
__device__ void run(const Linear<Act>& in, float* memory) {
  constexpr int kTile = 8 * MT * kStride;
  const int warp = threadIdx.x / 32, splits = blockDim.x / 32 / in.row_groups;
  const int first_row = blockIdx.x * kRows * in.row_groups, first_token = blockIdx.y * 8 * MT;
  WarpTile<Act, MT> tile(in, first_row + warp % in.row_groups * kRows, first_token);
  tile.run(warp / in.row_groups, splits);
  tile.save(memory + warp * kTile);
  __syncthreads();
  const int rows = min(kRows * in.row_groups, in.N - first_row), tokens = min(8 * MT, in.M - first_token);
  for (int e = threadIdx.x; e < kRows * in.row_groups * tokens; e += blockDim.x) {
    const int row = e % (kRows * in.row_groups), token = e / (kRows * in.row_groups);
    if (row >= rows) continue;
    const float* from = memory + row / kRows * kTile + token * kStride + row % kRows;
    float y = 0.0f;
    for (int split = 0; split < splits; ++split) y += from[split * in.row_groups * kTile];
    in.y[size_t(first_token + token) * in.N + first_row + row] = from_float<Act>(y);
  }
}

}  // namespace

#define LINEAR_KERNEL(Act, suffix, tiles)                                                                          \
  extern "C" __global__ void __launch_bounds__(256) fp8_block_linear_decode_##suffix##_m##tiles(                   \
      const Act* x, const uint8_t* weight, const void* scale, int bf16_scales, Act* y, int M, int N, int K,        \
      int row_groups) {                                                                                            \
    SHARED_MEMORY(memory);                                                                                         \
    run<Act, tiles>({x, weight, {scale, bf16_scales}, y, M, N, K, row_groups}, reinterpret_cast<float*>(memory));  \
  }                                                                                                                \
  EXPORT_KERNEL(fp8_block_linear_decode_##suffix##_m##tiles)

#define LINEAR_KERNELS(tiles)      \
  LINEAR_KERNEL(float, f32, tiles) \
  LINEAR_KERNEL(bf16, bf16, tiles)

LINEAR_KERNELS(1)
LINEAR_KERNELS(2)
LINEAR_KERNELS(4)
LINEAR_KERNELS(8)
