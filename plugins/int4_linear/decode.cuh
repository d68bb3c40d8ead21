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
  unsigned char* ring;
  int lane, g, t;
  const unsigned char* weight;  // the lane's 16 bytes of the first row that it copies, in block 0
  int rows;                     // that there are from that row on
  GroupScales::Row scales;      // of the row whose scales the lane copies; one in two lanes takes every other word
  const Act* x[MT];             // the lane's eight values of its token, in piece 0
  float sum[MT][4] = {};

  __device__ Int4Tile(const Int4Group& W, const Act* x, int tokens, int first_row, int first_token, int,
                      unsigned char* ring)
      : W(W), ring(ring), lane(threadIdx.x % 32), g(lane / 4), t(lane % 4),
        weight(W.weight + size_t(first_row + lane / kPieces) * (W.K / 2) + lane % kPieces * 16),
        rows(W.N - first_row - lane / kPieces), scales(W.scale.row(min(first_row + lane / 2, W.N - 1))) {
#pragma unroll
    for (int m = 0; m < MT; ++m)  // tokens that are not there: another's, whose sums nobody reads
      this->x[m] = x + size_t(min(first_token + 8 * m + g, tokens - 1)) * W.K + 8 * t;
  }

  // Where a piece of a row is in a stage: free of bank conflicts for both ways of access.
  __device__ static int at(int row, int piece) { return row * kRowBytes + (piece ^ row % 8) * 16; }

  __device__ __forceinline__ void fetch(int block, int blocks, int stage) {
    if (block < blocks) {
      unsigned char* to = ring + stage * kStage;
      const int piece = lane % kPieces;
      const bool inside = block * kPieces + piece < W.K / kPiece;
#pragma unroll
      for (int j = 0; j < kRows * kPieces / 32; ++j) {
        constexpr int kApart = 32 / kPieces;
        copy_async(to + at(lane / kPieces + j * kApart, piece), weight + j * kApart * (W.K / 2) + block * kRowBytes,
                   inside && j * kApart < rows);
      }
      const int words = W.scale.words(kPieces);
#pragma unroll 1
      for (int word = lane % 2; word < words; word += 2)  // one or two turns where groups are wide
        scales.copy(to + kScales + lane / 2 * kScaleRow, block * kPieces, kPieces, word);
    }
    commit_copies();
  }

  template <int Type>
  __device__ __forceinline__ void multiply(int block, int stage) {
    constexpr int kScaleBytes = Type == kF32Scales ? 4 : 2;
    const unsigned char* from = ring + stage * kStage;
    const int last = W.K - kPiece - block * kPieces * kPiece;  // the column of the last piece
    const int first = block * kPieces >> W.scale.shift;
    // Row g's first scale; that of row g + 8 lies as far behind a word's begin.
    const unsigned char* scale = from + kScales + g * kScaleRow + ((g * W.scale.groups + first) * kScaleBytes & 3);
#pragma unroll(MT * kTerms == 1 ? kPieces / 2 : 1)  // activations are loaded as far ahead: eight pieces, or two
    for (int two = 0; two < kPieces; two += 2) {
      BfPair words[4];  // of two pieces, each of rows g and g + 8
      load_matrices<false>(words, reinterpret_cast<const bf16*>(from + at(lane % 16, two + lane / 16)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const unsigned char* at_group = scale + (two + i >> W.scale.shift) * kScaleBytes;
        const float by[2] = {scale_at<Type>(at_group), scale_at<Type>(at_group + 8 * kScaleRow)};
        // Behind the last piece weights count for 0.
        multiply_piece(words[2 * i], words[2 * i + 1], block * kPieces * kPiece + min((two + i) * kPiece, last), by);
      }
    }
  }

  __device__ __forceinline__ void multiply_piece(uint32_t top, uint32_t bottom, int column, const float (&by)[2]) {
    float part[MT][4] = {};
    add_piece(top, bottom, column, part);
    add_scaled(by, part);
  }
  __device__ __forceinline__ void add_scaled(const float (&by)[2], const float (&part)[MT][4]) {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[m][e] = fmaf(by[e / 2], part[m][e], sum[m][e]);
  }

  __device__ __forceinline__ void add_piece(uint32_t top, uint32_t bottom, int column, float (&part)[MT][4]) const {
    BfPair a[2][4];
#pragma unroll
    for (int step = 0; step < 2; ++step)
#pragma unroll
      for (int j = 0; j < 4; ++j) a[step][j] = int4_to_bf16(j % 2 ? bottom : top, 2 * step + j / 2);
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      Activations<2, kTerms> b;
      b.get(x[m] + column);
#pragma unroll
      for (int term = 0; term < kTerms; ++term) {
        interleave(b.at[0][term], b.at[1][term]);
        mma(part[m], a[0], b.at[0][term]);
        mma(part[m], a[1], b.at[1][term]);
      }
    }
  }

  // A block that is whole, where four pieces or more share a scale, of bf16 activations: their products are summed before
  // they are scaled, and no address depends on what is there. Integer units are what a multiprocessor runs out of
  // (../fp8_linear/README.md).
  __device__ __forceinline__ void multiply_whole(int block, int stage) {
    constexpr int kShare = 4;
    const unsigned char* from = ring + stage * kStage;
    const int bytes = scale_bytes(W.scale.type), first = block * kPieces >> W.scale.shift;
    const unsigned char* scale = from + kScales + g * kScaleRow + ((g * W.scale.groups + first) * bytes & 3);
    const int words_at = at(lane % 16, lane / 16);  // of piece 0, or 1
    const int column = block * kPieces * kPiece;
#pragma unroll(MT == 1 ? 2 : 1)
    for (int share = 0; share < kPieces; share += kShare) {
      const unsigned char* at_group = scale + (share >> W.scale.shift) * bytes;
      const float by[2] = {W.scale.at(at_group), W.scale.at(at_group + 8 * kScaleRow)};
      float part[MT][4] = {};
#pragma unroll(MT == 1 ? 2 : 1)
      for (int two = share; two < share + kShare; two += 2) {
        BfPair words[4];  // of two pieces, each of rows g and g + 8
        // A piece lies at (piece ^ row % 8) * 16: `two`, which is even, flips bits of that.
        load_matrices<false>(words, reinterpret_cast<const bf16*>(from + (words_at ^ two * 16)));
#pragma unroll
        for (int i = 0; i < 2; ++i) add_piece(words[2 * i], words[2 * i + 1], column + (two + i) * kPiece, part);
      }
      add_scaled(by, part);
    }
  }

  // Blocks first, first + step, ... of K, with kStages - 1 of them on their way while one is multiplied. The first of them
  // are fetched before x has to be there.
  __device__ void run(int first, int step) {
    const int blocks = (W.K + kPieces * kPiece - 1) / (kPieces * kPiece);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch(first + i * step, blocks, i);
    wait_for_dependency();
    int stage = 0;
    const int whole = kTerms == 1 && W.scale.shift >= 2 ? W.K / (kPieces * kPiece) : 0;  // blocks, from the first on
    for (int block = first; block < blocks; block += step) {
      wait_copies<kStages - 2>();
      __syncwarp();  // the other lanes' pieces are here, and the stage before is free
      fetch(block + (kStages - 1) * step, blocks, stage ? stage - 1 : kStages - 1);
      if (block < whole) {
        if constexpr (kTerms == 1) multiply_whole(block, stage);
      } else if (W.scale.type == kBf16Scales)
        multiply<kBf16Scales>(block, stage);
      else if (W.scale.type == kF16Scales)
        multiply<kF16Scales>(block, stage);
      else
        multiply<kF32Scales>(block, stage);
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
