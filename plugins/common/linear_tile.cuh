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

// bf16 [N, K].
struct Bf16 {
  static constexpr int kBlock = 64, kChunk = 8;
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

// A block's part of the sums of MT groups of eight tokens, scaled; get(m, column, b) gives their activations.
template <class Weight, int Terms, int MT, class Get>
__device__ __forceinline__ void multiply_piece(int block, const Piece& w, float (&sum)[MT][4], Get get) {
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
      if (!get(m, lane_column<Weight>(block, i), b)) break;
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

// tile.fetch and tile.multiply of blocks first, first + step, ..., with Ahead - 1 on their way while one is multiplied.
template <int Ahead, class Tile>
__device__ __forceinline__ void run_blocks(Tile& tile, int blocks, int first, int step) {
  Piece w[Ahead];
#pragma unroll
  for (int i = 0; i < Ahead; ++i)
    if (first + i * step < blocks) tile.fetch(first + i * step, w[i]);
  for (int block = first; block < blocks; block += Ahead * step) {
#pragma unroll
    for (int i = 0; i < Ahead; ++i) {
      const int now = block + i * step, next = now + Ahead * step;
      if (now >= blocks) break;
      tile.multiply(now, w[i]);
      if (next < blocks) tile.fetch(next, w[i]);
    }
  }
}

// Gathered: the rows are those that `ids` names, each with its own scale.
//
// A lane copies its own pieces of the weight into a ring in shared memory and reads them back itself, so nobody has to
// be met: groups of cp.async are counted in order, and a warp waits for the oldest block alone. Loads to registers share
// the few scoreboards that the assembler deals out, and waiting for one is waiting for all.
template <class Act, class Weight, int MT, bool Gathered>
struct WarpTile {
  static constexpr int kTerms = sizeof(Act) == 2 ? 1 : 3, kBlock = Weight::kBlock, kChunk = Weight::kChunk;
  static constexpr int kStages = 4, kStage = 4 * 512;       // blocks in the ring; bytes of one: 16 by row, half and lane
  static constexpr int kRingBytes = kStages * kStage;       // of shared memory that `run` takes
  static constexpr int kFloats = 8 * MT * kTileStride;      // of shared memory that `save` takes

  const Weight& W;
  const Act* x;         // [tokens, K]
  unsigned char* ring;  // this lane's part
  int tokens, g, t, first_token, row[2];
  float sum[MT][4] = {};

  // Rows [first_row, + 16) of W, or those that ids[first_row, + 16) names; `rows` is how many there are in all.
  __device__ WarpTile(const Weight& W, const Act* x, int tokens, int first_row, int first_token, int rows,
                      unsigned char* ring, const int* ids = nullptr)
      : W(W), x(x), ring(ring + threadIdx.x % 32 * 16), tokens(tokens), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4),
        first_token(first_token) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row[half] = min(first_row + g + 8 * half, rows - 1);
      if (Gathered && ids) row[half] = ids[row[half]];
    }
  }

  __device__ __forceinline__ unsigned char* at(int stage, int half, int i) const {
    return ring + stage * kStage + (half * 2 + i) * 512;
  }

  __device__ __forceinline__ void fetch(int block, int blocks, int stage) const {
    if (block < blocks) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = lane_column<Weight>(block, i);
          copy_async(at(stage, half, i), W.at(row[half], column), column < W.K);
        }
    }
    commit_copies();
  }

  __device__ __forceinline__ void multiply(int block, int stage) {
    Piece w;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) w.at[half][i] = *reinterpret_cast<const uint4*>(at(stage, half, i));
      w.scale[half] = half && !Gathered ? w.scale[0] : W.scale_of(row[half], block);
    }
    multiply_piece<Weight, kTerms>(block, w, sum, [&](int m, int column, Activations<kChunk / 4, kTerms>& b) {
      const int token = first_token + 8 * m + g;
      if (token < tokens && column < W.K) b.get(x + size_t(token) * W.K + column);
      return true;
    });
  }

  // Blocks first, first + step, ... of K, with kStages - 1 of them on their way while one is multiplied. The first of them
  // are fetched before x has to be there.
  __device__ void run(int first, int step) {
    const int blocks = (W.K + kBlock - 1) / kBlock;
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) fetch(first + i * step, blocks, i);
    wait_for_dependency();
    int stage = 0;
    for (int block = first; block < blocks; block += step) {
      wait_copies<kStages - 2>();
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
