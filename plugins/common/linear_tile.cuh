// The tile of the memory-bound linear layers: 16 rows of a weight [N, K] times up to 8 MT tokens, one warp.
//
// Weights go from memory to mma's left operand without an exchange between lanes: a lane reads 16 consecutive bytes of
// a row, and since a sum over K may be taken in any order, the lane's k-th value is whatever k-th value of x the right
// operand is given. f32 activations are split into three bf16 terms, so products are exact either way.
#pragma once
#include "fp8.cuh"
#include "vector.cuh"

constexpr int kRows = 16, kTileStride = 20;

template <class Act, class Weight, int MT, bool Gathered>
struct WarpTile;

// E4M3 [N, K], a scale per 128 x 128 block.
struct BlockFp8 {
  static constexpr int kBlock = 128, kChunk = 16;  // values of K per warp step, and in 16 bytes
  static constexpr bool kScaled = true;
  template <class Act, int MT>
  using Tile = WarpTile<Act, BlockFp8, MT, false>;
  const uint8_t* weight;
  Parameter scale;
  int N, K;

  __device__ __forceinline__ const void* at(int row, int k) const { return weight + size_t(row) * K + k; }
  __device__ __forceinline__ float scale_of(int row, int block) const {
    return scale[row / kBlock * ((K + kBlock - 1) / kBlock) + block];
  }
  __device__ __forceinline__ static void unpack(const uint32_t (&words)[4], int j, BfPair& first, BfPair& second) {
    e4m3_to_bf16(words[j], first, second);
  }
  // Another weight of the same sizes.
  __device__ __forceinline__ void become(const BlockFp8& other) { weight = other.weight, scale = other.scale; }
};

// E4M3 [N, K], a bf16 scale per row and 128 columns.
struct RowFp8 {
  static constexpr int kBlock = 128, kChunk = 16;
  static constexpr bool kScaled = true;
  const uint8_t* weight;
  const bf16* scale;  // [N, ceil(K / 128)]
  int N, K;

  __device__ __forceinline__ const void* at(int row, int k) const { return weight + size_t(row) * K + k; }
  __device__ __forceinline__ float scale_of(int row, int block) const {
    return to_float(scale[size_t(row) * ((K + kBlock - 1) / kBlock) + block]);
  }
  __device__ __forceinline__ static void unpack(const uint32_t (&words)[4], int j, BfPair& first, BfPair& second) {
    e4m3_to_bf16(words[j], first, second);
  }
};

// bf16 [N, K].
struct Bf16 {
  static constexpr int kBlock = 64, kChunk = 8;
  static constexpr bool kScaled = false;
  template <class Act, int MT>
  using Tile = WarpTile<Act, Bf16, MT, false>;
  const bf16* weight;
  int N, K;

  __device__ __forceinline__ const void* at(int row, int k) const { return weight + size_t(row) * K + k; }
  __device__ __forceinline__ float scale_of(int, int) const { return 1.0f; }
  __device__ __forceinline__ static void unpack(const uint32_t (&words)[4], int j, BfPair& first, BfPair& second) {
    first = words[2 * j], second = words[2 * j + 1];
  }
  __device__ __forceinline__ void become(const Bf16& other) { weight = other.weight; }
};

// Consecutive activations of one token as right operands of `Steps` products, in `Terms` bf16 terms.
template <int Steps, int Terms>
struct Activations {
  BfPair at[Steps][Terms][2];

  __device__ __forceinline__ void get(const bf16* from) {
#pragma unroll
    for (int i = 0; i < Steps / 2; ++i) {
      const uint4 eight = *reinterpret_cast<const uint4*>(from + 8 * i);
      at[2 * i][0][0] = eight.x, at[2 * i][0][1] = eight.y;
      at[2 * i + 1][0][0] = eight.z, at[2 * i + 1][0][1] = eight.w;
    }
  }
  __device__ __forceinline__ void get(const float* from) {
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
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

// Rows g and g + 8 of a tile: of one block, the first and second half of its columns and the rows' scales.
struct Piece {
  uint4 at[2][2];
  float scale[2];
};

// The first column of a lane's 16 bytes in one half of a block.
template <class Weight>
__device__ __forceinline__ int lane_column(int block, int half) {
  return block * Weight::kBlock + half * Weight::kBlock / 2 + Weight::kChunk * (threadIdx.x % 4);
}

// A block's part of the sums of MT groups of eight tokens, scaled; get(m, half, b) gives their activations in a half of
// the block's columns, or is false where there are none.
template <class Weight, int Terms, int MT, class Get>
__device__ __forceinline__ void multiply_piece(const Piece& w, float (&sum)[MT][4], Get get) {
  constexpr int kSteps = Weight::kChunk / 4;
  float part[MT][4] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 top = w.at[0][i], bottom = w.at[1][i];
    const uint32_t words[2][4] = {{top.x, top.y, top.z, top.w}, {bottom.x, bottom.y, bottom.z, bottom.w}};
    BfPair a[kSteps][4];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      Weight::unpack(words[0], j, a[j][0], a[j][2]);
      Weight::unpack(words[1], j, a[j][1], a[j][3]);
    }
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      Activations<kSteps, Terms> b = {};
      if (!get(m, i, b)) break;
#pragma unroll
      for (int j = 0; j < kSteps; ++j)
#pragma unroll
        for (int term = 0; term < Terms; ++term) mma(part[m], a[j], b.at[j][term]);
    }
  }
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[m][i] = fmaf(w.scale[i / 2], part[m][i], sum[m][i]);
}

// Gathered: the rows are those that `ids` names, each with its own scale.
//
// A warp copies its blocks of the weight into a ring in shared memory that is its own: groups of cp.async are counted in
// order, and it waits for the oldest block alone. Loads to registers share the few scoreboards that the assembler deals
// out, and waiting for one is waiting for all. A copy takes whole lines of 128 bytes, which memory gives up faster than
// halves of them. Nothing in the loop waits for memory: of up to eight bf16 tokens the values of a block are asked for
// before its copies are waited for, and the scales of 32 blocks, which all rows of a tile share, are dealt out to the lanes long before.
// Addresses move from block to block by an addition: integer units, not memory, are what a multiprocessor runs out of.
template <class Act, class Weight, int MT, bool Gathered>
struct WarpTile {
  static constexpr int kTerms = sizeof(Act) == 2 ? 1 : 3, kBlock = Weight::kBlock, kChunk = Weight::kChunk;
  static constexpr int kLine = 128, kPieces = kLine / 16, kCopies = kRows * kPieces / 32;  // of a block, by one lane
  static constexpr int kStages = 4, kStage = kRows * kLine;  // blocks in the ring; bytes of one
  static constexpr int kRingBytes = kStages * kStage;        // of shared memory that `run` takes
  static constexpr int kFloats = 8 * MT * kTileStride;       // of shared memory that `save` takes
  static constexpr bool kAhead = MT == 1 && kTerms == 1, kShared = Weight::kScaled && !Gathered;
  static_assert(kStages == 4, "a turn's stage is its last two bits");

  // The lane's values of its token in a block.
  struct Inputs {
    Activations<kChunk / 4, kTerms> half[2];
  };

  const Weight& W;
  const Act* x;  // [tokens, K]
  unsigned char* ring;
  int lane, tokens, g, t, first_token;
  int row[2];                          // that the lane multiplies
  int copied[kCopies];                 // and those that it copies a piece of
  const unsigned char* from[kCopies];  // these pieces in the next block that is fetched
  int left;                            // columns from there to the end of K
  const Act* ahead;                    // the lane's first value of its token in the next block that is multiplied
  int ahead_left;                      // columns from there to the end of K; none if there is no such token
  float sum[MT][4] = {};

  // Rows [first_row, + 16) of W, or those that ids[first_row, + 16) names; `rows` is how many there are in all.
  __device__ WarpTile(const Weight& W, const Act* x, int tokens, int first_row, int first_token, int rows,
                      unsigned char* ring, const int* ids = nullptr)
      : W(W), x(x), ring(ring), lane(threadIdx.x % 32), tokens(tokens), g(lane / 4), t(lane % 4), first_token(first_token) {
    const auto row_of = [&](int place) {
      const int at = min(first_row + place, rows - 1);
      return Gathered && ids ? ids[at] : at;
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) row[half] = row_of(g + 8 * half);
#pragma unroll
    for (int j = 0; j < kCopies; ++j) copied[j] = row_of(lane / kPieces + 32 / kPieces * j);
  }

  // Where a piece of a row is in a stage: the pieces of an odd row's halves change places, or both rows' would be in the
  // same banks.
  __device__ static int at(int row, int piece) { return row * kLine + (piece ^ row % 2 * (kPieces / 2)) * 16; }
  __device__ __forceinline__ unsigned char* stage_of(int turn) const { return ring + turn % kStages * kStage; }

  // Copies the turn's block, zeros behind K; the next one that is fetched is `step` blocks on.
  __device__ __forceinline__ void fetch(int turn, int step) {
    unsigned char* to = stage_of(turn) + at(lane / kPieces, lane % kPieces);
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      copy_async(to + 32 / kPieces * j * kLine, from[j], left > 0);
      from[j] += step * kLine;
    }
    commit_copies();
    left -= step * kBlock;
  }

  __device__ __forceinline__ void get(int m, int block, int half, Activations<kChunk / 4, kTerms>& b) const {
    const int token = first_token + 8 * m + g, column = lane_column<Weight>(block, half);
    if (token < tokens && column < W.K) b.get(x + size_t(token) * W.K + column);
  }
  __device__ __forceinline__ void get_ahead(Inputs& b, int step) {
    if constexpr (kAhead) {
      if (ahead_left > 0) b.half[0].get(ahead);
      if (ahead_left > kBlock / 2) b.half[1].get(ahead + kBlock / 2);
      ahead += step * kBlock, ahead_left -= step * kBlock;
    }
  }

  // The lane's scale: that of the lane'th of the blocks first, first + step, ...
  __device__ __forceinline__ float scale_of(int first, int step, int blocks) const {
    if constexpr (!kShared) return 1.0f;
    const int block = first + lane * step;
    return block < blocks ? W.scale_of(row[0], block) : 0.0f;
  }

  __device__ __forceinline__ void multiply(int block, int turn, float scale, const Inputs& values) {
    const unsigned char* stage = stage_of(turn);
    Piece w;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        w.at[half][i] = *reinterpret_cast<const uint4*>(stage + at(g, i * (kPieces / 2) + t) + 8 * half * kLine);
      w.scale[half] = Gathered ? W.scale_of(row[half], block) : scale;
    }
    multiply_piece<Weight, kTerms>(w, sum, [&](int m, int half, Activations<kChunk / 4, kTerms>& b) {
      if constexpr (kAhead)
        b = values.half[half];
      else
        get(m, block, half, b);
      return true;
    });
  }

  // Blocks first, first + step, ... of K, with kStages - 1 of them on their way while one is multiplied. The first of them
  // are fetched before x has to be there.
  __device__ void run(int first, int step) {
    const int blocks = (W.K + kBlock - 1) / kBlock, column = first * kBlock + lane % kPieces * kChunk;
    left = W.K - column;
#pragma unroll
    for (int j = 0; j < kCopies; ++j) from[j] = static_cast<const unsigned char*>(W.at(copied[j], column));
    if constexpr (kAhead) {
      const int token = first_token + g, begin = lane_column<Weight>(first, 0);
      ahead = x + size_t(min(token, tokens - 1)) * W.K + begin;
      ahead_left = token < tokens ? W.K - begin : 0;
    }
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch(i, step);
    float scales = 1.0f, later = scale_of(first, step, blocks);
    wait_for_dependency();
    Inputs values = {};  // where K ends early weights are zeros, and any values will do
    const int turns = (blocks - first + step - 1) / step;
    for (int turn = 0; turn < turns; ++turn) {
      get_ahead(values, step);
      if (turn % 32 == 0) scales = later, later = scale_of(first + (turn + 32) * step, step, blocks);
      wait_copies<kStages - 2>();
      __syncwarp();  // the other lanes' pieces are here, and the stage before is free
      fetch(turn + kStages - 1, step);
      multiply(first + turn * step, turn, kShared ? __shfl_sync(0xffffffffu, scales, turn % 32) : 1.0f, values);
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
