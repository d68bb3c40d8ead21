// 16 rows of an int4 weight times up to 8 MT tokens, by one warp.
//
// The weight and its scales go through a ring in shared memory that is the warp's own: cp.async groups are counted in
// order, so a warp waits for the oldest stage while the next ones are on their way.
#pragma once
#include "../common/int4.cuh"
#include "../fp8_linear/decode.cuh"

template <class Act, int MT>
struct Int4Tile;

// Int4 [N, K] with a scale per group of a row.
struct Int4Group {
  template <class Act, int MT>
  using Tile = Int4Tile<Act, MT>;
  const unsigned char* weight;
  GroupScales scale;
  int N, K;

  // Another weight of the same sizes.
  __device__ __forceinline__ void become(const Int4Group& other) {
    weight = other.weight, scale.data = other.scale.data;
  }
};

template <class Act, int MT>
struct Int4Tile {
  static constexpr int kTerms = sizeof(Act) == 2 ? 1 : 3;
  static constexpr int kPieces = 8, kRowBytes = kPieces * 16;  // of a row, per stage
  static constexpr int kScales = kRows * kRowBytes;            // where a stage's scales begin
  static constexpr int kScaleRow = 36;  // bytes: eight f32, and one more for rows to lie in different banks
  static constexpr int kStages = 3, kStage = kScales + kRows * kScaleRow;
  static constexpr int kRingBytes = kStages * kStage;
  static constexpr int kFloats = 8 * MT * kTileStride;  // of shared memory that `save` takes

  const Int4Group& W;
  const Act* x;  // [tokens, K]
  unsigned char* ring;
  int tokens, lane, g, t, first_row, first_token;
  float sum[MT][4] = {};

  __device__ Int4Tile(const Int4Group& W, const Act* x, int tokens, int first_row, int first_token, int,
                      unsigned char* ring)
      : W(W), x(x), ring(ring), tokens(tokens), lane(threadIdx.x % 32), g(lane / 4), t(lane % 4), first_row(first_row),
        first_token(first_token) {}

  // Where a piece of a row is in a stage: free of bank conflicts for both ways of access.
  __device__ static int at(int row, int piece) { return row * kRowBytes + (piece ^ row % 8) * 16; }

  __device__ __forceinline__ void fetch(int block, int blocks, int stage) {
    if (block < blocks) {
      unsigned char* to = ring + stage * kStage;
      const int piece = lane % kPieces, from_column = (block * kPieces + piece) * 16;  // bytes
#pragma unroll
      for (int j = 0; j < kRows * kPieces / 32; ++j) {
        const int r = lane / kPieces + j * (32 / kPieces);
        const bool is = first_row + r < W.N && from_column < W.K / 2;
        copy_async(to + at(r, piece), W.weight + (is ? size_t(first_row + r) * (W.K / 2) + from_column : 0), is);
      }
      const int r = lane / 2, words = W.scale.words(kPieces);
      if (first_row + r < W.N)
        for (int word = lane % 2; word < words; word += 2)
          W.scale.copy(to + kScales + r * kScaleRow, first_row + r, block * kPieces, kPieces, word);
    }
    commit_copies();
  }

  __device__ __forceinline__ float scale_of(const unsigned char* stage, int r, int block, int i) const {
    return W.scale.get(stage + kScales + r * kScaleRow, first_row + r, block * kPieces, i);
  }

  __device__ __forceinline__ void multiply(int block, int stage) {
    const unsigned char* from = ring + stage * kStage;
    BfPair words[4];  // of two pieces, each of rows g and g + 8
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (i % 2 == 0) load_matrices<false>(words, reinterpret_cast<const bf16*>(from + at(lane % 16, i + lane / 16)));
      BfPair a[2][4];
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int j = 0; j < 4; ++j) a[step][j] = int4_to_bf16(words[i % 2 * 2 + j % 2], 2 * step + j / 2);
      const float scale[2] = {scale_of(from, g, block, i), scale_of(from, g + 8, block, i)};
      const int column = (block * kPieces + i) * kPiece + 8 * t;
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        Activations<2, kTerms> b = {};
        const int token = first_token + 8 * m + g;
        if (token < tokens && column < W.K) b.get(x + size_t(token) * W.K + column);
        float part[4] = {};
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
          interleave(b.at[0][term], b.at[1][term]);
          mma(part, a[0], b.at[0][term]);
          mma(part, a[1], b.at[1][term]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[m][e] = fmaf(scale[e / 2], part[e], sum[m][e]);
      }
    }
  }

  // Blocks first, first + step, ... of K, with kStages - 1 of them on their way while one is multiplied.
  __device__ void run(int first, int step) {
    const int blocks = (W.K + kPieces * kPiece - 1) / (kPieces * kPiece);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch(first + i * step, blocks, i);
    int stage = 0;
    for (int block = first; block < blocks; block += step) {
      wait_copies<kStages - 2>();
      __syncwarp();  // the other lanes' pieces are here, and the stage before is free
      fetch(block + (kStages - 1) * step, blocks, stage ? stage - 1 : kStages - 1);
      multiply(block, stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
  }

  // Element (row, token) of the tile goes to tile[token * kTileStride + row].
  __device__ void save(float* tile) const {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) tile[(8 * m + 2 * t + i % 2) * kTileStride + g + i / 2 * 8] = sum[m][i];
  }
};
