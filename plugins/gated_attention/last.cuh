// The parts of the keys put together by the tile's block that is done last, to the bit as gated_attention_combine does it:
// parts in four runs, each added in order, then the runs.
//
// A row's sums are D floats for each part. They come through shared memory in rounds of two, so that as many bytes are on
// their way as it holds; a thread adds its columns of all rows, so that none waits for another but at a round's ends.
#pragma once
#include "../common/fresh.cuh"
#include "../common/last_block.cuh"
#include "tile.cuh"

namespace {

template <int D, class Cache, class Heads>
struct Last {
  typedef Block<D, 1, Cache, Heads> Tile;
  static constexpr int kThreads = 32 * kWarps, kMine = D > kThreads ? D / kThreads : 1, kMostParts = 128;
  static constexpr int kFloats = (16 + 4 * kKeys) * Tile::kStride / 2 + 16 * kScoreStride;  // that the tile has
  static_assert(kFloats >= 16 * (2 * kMostParts + 1) + 8 * D + 4 + 2 * D, "a sum a round at least");

  const Tile& tile;
  int parts, rows, splits, round;  // `rows` that live; `round`: sums a round
  bf16* gate;                      // [rows, D]
  float *weight, *counted, *total, *stage;  // [rows, parts] twice; [rows]; two rounds of [D]

  __device__ Last(const Tile& tile)
      : tile(tile), parts(tile.parts()), rows(max(0, min(tile.per_tile, tile.live)) * tile.group), splits(gridDim.x),
        gate(tile.Q), weight(reinterpret_cast<float*>(gate + rows * D)), counted(weight + rows * parts),
        total(counted + rows * parts), stage(weight + (2 * rows * parts + rows + 3) / 4 * 4) {
    round = (kFloats - int(stage - reinterpret_cast<float*>(gate))) / (2 * D);
  }

  __device__ size_t row_of(int r) const {
    int token;
    size_t at;
    tile.query_row(r, token, at);
    return at / D;
  }
  // Parts of the row's keys that are not empty.
  __device__ int seen(int r) const { return Partition(tile.past + r / tile.group + 1, splits).live; }
  __device__ static int run_of(int seen) { return (seen + kCombiners - 1) / kCombiners; }

  // Sums of parts [number * round, + round), counted over all rows, on their way to shared memory.
  __device__ void bring(int number) const {
    const int first = number * round, stop = min(first + round, rows * parts);
    for (int pair = first + tile.warp; pair < stop; pair += kWarps) {
      const int r = pair / parts, part = pair % parts;
      if (part >= seen(r)) continue;
      const float* from = tile.in.partial + (row_of(r) * splits + part) * D;
      float* to = stage + (number % 2 * round + pair - first) * D;
      for (int column = tile.lane * 4; column < D; column += 4 * 32) copy_async(to + column, from + column, true);
    }
    commit_copies();
  }

  // Weights of the row's parts, and what they count together.
  __device__ void weigh(int r) const {
    const int live = seen(r), run = run_of(live);
    const size_t all = size_t(gridDim.z / tile.in.kv_heads) * tile.in.tokens * tile.in.heads * splits;
    const float* stats = tile.in.partial + all * D + row_of(r) * splits * 2;
    float most = kMasked, whole = 0.0f;
    for (int i = tile.lane; i < live; i += 32) {
      weight[r * parts + i] = fresh(stats + 2 * i), counted[r * parts + i] = fresh(stats + 2 * i + 1);
      most = fmaxf(most, weight[r * parts + i]);
    }
#pragma unroll
    for (int mask = 16; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, mask));
    for (int i = tile.lane; i < live; i += 32) weight[r * parts + i] = exp2f(weight[r * parts + i] - most);
    __syncwarp();
    const int first = r * parts + tile.lane * run, stop = r * parts + min(live, (tile.lane + 1) * run);
    if (tile.lane < kCombiners)
      for (int i = first; i < stop; ++i) whole = fmaf(weight[i], counted[i], whole);
    float sum = whole;
#pragma unroll
    for (int other = 1; other < kCombiners; ++other) sum += __shfl_sync(kFullWarp, whole, other);
    if (tile.lane == 0) total[r] = sum;
  }

  __device__ void write(int r, const float (&sum)[kMine]) const {
    const int column = threadIdx.x * kMine;
    float g[kMine], y[kMine];
    load(gate + r * D + column, g);
#pragma unroll
    for (int j = 0; j < kMine; ++j) y[j] = sum[j] * (sigmoid(g[j]) / total[r]);
    store(tile.in.o + row_of(r) * D + column, y);
  }

  __device__ void run() const {
    for (int e = threadIdx.x; e < rows * (D / 8); e += kThreads) {
      const int r = e / (D / 8), column = e % (D / 8) * 8;
      copy_async(gate + r * D + column, tile.gate_of(row_of(r) * D) + column, true);
    }
    bring(0);
    bring(1);
    for (int r = tile.warp; r < rows; r += kWarps) weigh(r);
    const int column = threadIdx.x * kMine;
    float sum[kMine] = {}, whole[kMine] = {};
    int at = 0;  // the next of rows * parts
    for (int number = 0; number * round < rows * parts; ++number) {
      wait_copies<1>();
      __syncthreads();
      const int first = number * round, stop = min(first + round, rows * parts);
      while (at < stop && column < D) {
        const int r = at / parts, part = at % parts, live = seen(r), run = run_of(live);
        const int until = min((part / run + 1) * run, live), count = min(until - part, stop - at);
        const float* sums = stage + (number % 2 * round + at - first) * D + column;
#pragma unroll 8
        for (int i = 0; i < count; ++i) {
          float x[kMine];
          load(sums + i * D, x);
#pragma unroll
          for (int j = 0; j < kMine; ++j) sum[j] = fmaf(weight[at + i], x[j], sum[j]);
        }
        at += count;
        if (part + count < until) break;  // the rest of the run comes with the next round
#pragma unroll
        for (int j = 0; j < kMine; ++j) whole[j] += sum[j], sum[j] = 0.0f;
        if (until < live) continue;
        write(r, whole);
#pragma unroll
        for (int j = 0; j < kMine; ++j) whole[j] = 0.0f;
        at = (r + 1) * parts;
      }
      __syncthreads();
      bring(number + 2);
    }
    wait_copies<0>();
    // Zeros for tokens that don't live.
    const int all = min(tile.per_tile, tile.in.tokens) * tile.group;
    for (int e = threadIdx.x; e < (all - rows) * (D / 8); e += kThreads)
      *reinterpret_cast<uint4*>(tile.in.o + row_of(rows + e / (D / 8)) * D + e % (D / 8) * 8) = make_uint4(0, 0, 0, 0);
  }
};

}  // namespace
