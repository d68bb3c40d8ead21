// y = x W^T for many tokens, bf16 activations: 128 x 128 tiles of y, W in int4, widened in registers. README.md.
//
// The two products over a piece, 32 of K, are summed by the tensor cores and then scaled into f32 sums. Eight warps, 64
// tokens x 32 rows of W each. Grid (token tiles, weight tiles, splits).
#include "../fp8_linear/output.cuh"
#include "projections.cuh"

namespace {

constexpr int kThreads = 256, kTile = 128, kSplit = 128;  // kSplit: K is cut at multiples of it

struct Product {
  const bf16* x;  // [M, K]
  const unsigned char* weight;
  GroupScales scale;
  Output out;
  int K;
};

struct Tile {
  static constexpr int kPieces = 2, kStep = kPieces * kPiece, kStages = 3;  // of K
  static constexpr int kRowX = kStep * 2, kRowW = kStep / 2, kRowScale = 12;  // bytes; scales: two words and a gap
  static constexpr int kW = kTile * kRowX, kScales = kW + kTile * kRowW, kStage = kScales + kTile * kRowScale;

  const Product& in;
  unsigned char* memory;
  int lane, warp, g, t, first_token, first_row, token, row;  // token, row: this warp's part of the tile
  float sum[4][4][4] = {};

  __device__ Tile(const Product& in, unsigned char* memory)
      : in(in), memory(memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32), g(lane / 4), t(lane % 4),
        first_token(blockIdx.x * kTile), first_row(blockIdx.y * kTile), token(warp / 4 * 64), row(warp % 4 * 32) {}

  // Where 16 bytes of a row are: free of bank conflicts for the reads below.
  __device__ static int x_at(int row, int eighth) { return row * kRowX + (eighth ^ row % 2 * 4) * 16; }
  __device__ static int w_at(int row, int piece) { return kW + row * kRowW + (piece ^ row / 4 % 2) * 16; }

  __device__ void fetch(int step) {
    unsigned char* to = memory + step % kStages * kStage;
#pragma unroll
    for (int e = threadIdx.x; e < kTile * 8; e += kThreads) {
      const int r = e / 8, k = step * kStep + e % 8 * 8;
      const bool is = first_token + r < in.out.M && k < in.K;
      copy_async(to + x_at(r, e % 8), in.x + (is ? size_t(first_token + r) * in.K + k : 0), is);
    }
    const int r = threadIdx.x / kPieces, i = threadIdx.x % kPieces, piece = step * kPieces + i;
    const bool is = first_row + r < in.out.N && piece * kPiece < in.K;
    copy_async(to + w_at(r, i), in.weight + (is ? size_t(first_row + r) * (in.K / 2) + piece * 16 : 0), is);
    if (first_row + r < in.out.N && i < in.scale.words(kPieces))
      in.scale.row(first_row + r).copy(to + kScales + r * kRowScale, step * kPieces, kPieces, i);
  }

  __device__ void multiply(int step) {
    const unsigned char* from = memory + step % kStages * kStage;
    const int bytes = scale_bytes(in.scale.type), group = step * kPieces >> in.scale.shift;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      BfPair words[4], b[4][2][2];
      load_matrices<false>(words, reinterpret_cast<const bf16*>(from + w_at(row + lane, i)));
      float scale[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int r = row + n * 8 + 2 * t + j;
          // Where the row's first scale is behind a word's begin follows from j: all other parts of r are even.
          const unsigned char* at = from + kScales + r * kRowScale + ((j * in.scale.groups + group) * bytes & 3);
          const unsigned char* mine = at + (i >> in.scale.shift) * bytes;
          scale[n][j] = in.scale.type == kBf16Scales  ? scale_at<kBf16Scales>(mine)
                        : in.scale.type == kF16Scales ? scale_at<kF16Scales>(mine)
                                                      : scale_at<kF32Scales>(mine);
#pragma unroll
          for (int half = 0; half < 2; ++half) b[n][j][half] = int4_to_bf16(words[n], 2 * j + half);
        }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        Activations<2, 1> x[2];  // of tokens g and g + 8
        BfPair a[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = token + m * 16 + half * 8 + g;
          x[half].get(reinterpret_cast<const bf16*>(from + x_at(r, i * 4 + t)));
          interleave(x[half].at[0][0], x[half].at[1][0]);
#pragma unroll
          for (int j = 0; j < 2; ++j) a[j][half] = x[half].at[j][0][0], a[j][half + 2] = x[half].at[j][0][1];
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float part[4] = {};
          mma(part, a[0], b[n][0]);
          mma(part, a[1], b[n][1]);
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[m][n][e] = fmaf(scale[n][e % 2], part[e], sum[m][n][e]);
        }
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
    const int blocks = (in.K + kSplit - 1) / kSplit, each = (blocks + gridDim.z - 1) / gridDim.z * (kSplit / kStep);
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
      multiply(step);
    }
    write();
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    int4_linear_prefill(const bf16* x, const unsigned char* weight, const void* scale, int scale_type, bf16* y,
                        float* partial, int M, int N, int K, int groups, int shift) {
  begin_dependent();
  SHARED_MEMORY(memory);
  const GroupScales scales = {static_cast<const unsigned char*>(scale), scale_type, groups, shift};
  const Product in = {x, weight, scales, {y, partial, M, N}, K};
  Tile(in, memory).run();
}

EXPORT_KERNEL(int4_linear_prefill)
ADD_SPLITS_KERNEL(int4_linear)
SILU_MUL_KERNEL(int4_linear)
INT4_PROJECTIONS_KERNEL(bf16, bf16, 1, 4)
INT4_PROJECTIONS_KERNEL(bf16, bf16, 2, 4)
INT4_PROJECTIONS_KERNEL(bf16, bf16, 4, 2)
