// One row of logits: its settings, adjusted scores and integer probabilities, and what a draw leaves behind.
#pragma once
#include <limits.h>

#include "../common/fresh.cuh"
#include "../common/warp.cuh"
#include "random.cuh"

constexpr int kMostBlocks = 64;            // of a row
constexpr float kUnit = 1099511627776.0f;  // 2^40, the largest token's weight
constexpr int kPromptBit = 1 << 30;        // of a token's count: it is in the prompt
constexpr int kBrackets = 16;

// Distances from the top score, in temperatures; beyond the last a weight is 0.
__device__ __forceinline__ float edge(int bracket) {
  const float edges[kBrackets] = {0.25f, 0.5f, 1, 1.5f, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32};
  return edges[bracket];
}

#ifdef DELTART_CPU_SHIM
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
#else
__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
#endif

// How a row is sampled, as runtime/sample.py has it.
struct Settings {
  float temperature, top_p, min_p, presence, frequency, repetition;
};

// What the blocks and launches of a row tell each other. Zero before the first call.
struct Work {
  unsigned done;           // blocks that are through with the launch
  int live;                // whether a token is still to be drawn
  float top;               // the largest score
  int bracket, kept;       // of the tokens listed, and how many those are; bracket -1: none are, all may come
  int block;               // with bracket -1, the block that holds the drawn token
  u64 rest;                // and the weight before the token there; else the nucleus of all tokens
  u64 best[kMostBlocks];   // key of each block's best token
  u64 weight[kMostBlocks][kBrackets];  // of the tokens within each bracket, by block
  unsigned count[kMostBlocks][kBrackets];
  unsigned offset[kMostBlocks];  // where each block's part of the list starts
};

static_assert(sizeof(Work) == 32 + kMostBlocks * (8 + 12 * kBrackets + 4), "WORK_BYTES in launch.py");

struct Sampler {
  const float* logits;       // [B, V]
  const Settings* settings;  // [B]
  const int* top_k;          // [B], 0 keeps all
  u64* seed_step;            // [B, 2]; the step is raised where the row is fed
  int* counts;               // [B, V] times generated, plus kPromptBit; the drawn token's is raised. Null: no penalties
  const uint32_t* allowed;   // [B, ceil(V / 32)], or null
  float* scores;             // [B, V] scratch, used where counts or allowed are
  int* list;                 // [B, V] scratch
  Work* work;                // [B]
  int* token;                // [B]; -1 where the largest score is not finite
  // The inputs of the next decode step, which the token goes into. All null: nothing is fed.
  long long *input_ids, *position_ids;  // [B], [3, B]
  int* past_len;                        // [B]
  const int* n_tokens;                  // [B]; a row without a token is idle: nothing is drawn
  int* history;                         // [ring, B] tokens, by step
  int V, limit, ring;                   // ids from `limit` on are padding
};

// [first, last) of `count` items for the `index`th of `pieces`, in whole warps.
struct Part {
  int first, last;
  __device__ Part(int count, int pieces, int index, int from = 0) {
    const int size = ((count + pieces - 1) / pieces + 31) / 32 * 32;
    first = from + min(index * size, count), last = from + min((index + 1) * size, count);
  }
};

struct Row {
  const Sampler& in;
  const Settings s;
  const int row, rows, lane, warp, warps;
  Work& work;
  float* const scores;
  u64* const sums;  // shared, one per warp and four more
  float top = -INFINITY;

  __device__ Row(const Sampler& in, u64* sums)
      : in(in), s(in.settings[blockIdx.y]), row(blockIdx.y), rows(gridDim.y), lane(threadIdx.x % 32), warp(threadIdx.x / 32),
        warps(blockDim.x / 32), work(in.work[row]), scores(in.scores + size_t(row) * in.V), sums(sums) {}

  __device__ bool idle() const { return in.n_tokens && in.n_tokens[row] == 0; }
  __device__ bool adjusts() const { return in.counts || in.allowed; }
  __device__ float score(int id) const { return adjusts() ? scores[id] : in.logits[size_t(row) * in.V + id]; }

  __device__ float adjusted(int id) const {
    float x = in.logits[size_t(row) * in.V + id];
    if (in.counts) {
      const int count = in.counts[size_t(row) * in.V + id], generated = count & ~kPromptBit;
      if (count && s.repetition != 1.0f) x = x < 0.0f ? x * s.repetition : x / s.repetition;
      if (generated) x -= s.presence + s.frequency * generated;
    }
    if (in.allowed && !(in.allowed[size_t(row) * ((in.V + 31) / 32) + id / 32] >> id % 32 & 1)) x = -INFINITY;
    return x;
  }

  __device__ static uint32_t ordered(float x) {
    const uint32_t bits = bits_of(x == 0.0f ? 0.0f : x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  __device__ float distance(float score) const { return (top - score) / s.temperature; }
  // exp(-distance), 2^40 for the largest.
  __device__ u64 weight(float score) const { return u64(rintf(expf((score - top) / s.temperature) * kUnit)); }
  __device__ u64 above_min_p(u64 weight) const { return weight >= u64(rintf(s.min_p * kUnit)) ? weight : 0; }
  __device__ bool counts_tokens() const { return in.top_k[row] > 0 && in.top_k[row] < in.limit; }
  __device__ bool cuts() const { return counts_tokens() || s.top_p < 1.0f; }
  __device__ u64 nucleus(u64 total) const { return u64(ceil(double(s.top_p) * double(total))); }
  // A random number below `total`, from 53 random bits as a double has them.
  __device__ u64 random_below(u64 total) const {
    const u64* at = in.seed_step + 2 * row;
    return multiply_high(philox(at[0], at[1]) & ~2047ull, total);
  }

  template <class T, class F>
  __device__ T warp_reduce(T x, F&& better) const {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) x = better(x, __shfl_xor_sync(kFullWarp, x, mask));
    return x;
  }
  __device__ u64 warp_total(u64 x) const {
    return warp_reduce(x, [](u64 a, u64 b) { return a + b; });
  }
  // One value per warp, handed to all threads.
  __device__ void publish(u64 mine) const {
    __syncthreads();
    if (lane == 0) sums[warp] = mine;
    __syncthreads();
  }
  // The sum of the warps' published values below `end`.
  __device__ u64 published(int end) const {
    u64 total = 0;
    for (int i = 0; i < end; ++i) total += sums[i];
    return total;
  }
  __device__ u64 most_published() const {
    u64 most = 0;
    for (int i = 0; i < warps; ++i) most = sums[i] > most ? sums[i] : most;
    return most;
  }

  // Whether this is the last block of the row to come here; then it sees what the others wrote (through `fresh`).
  __device__ bool last_block() const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) sums[0] = atomicAdd(&work.done, 1u) + 1 == gridDim.x;
    __syncthreads();
    const bool last = sums[0];
    __syncthreads();
    if (last && threadIdx.x == 0) work.done = 0;
    __threadfence();
    return last;
  }

  // Thread 0 records the row's token and feeds it to the next step.
  __device__ void finish(int token) const {
    if (threadIdx.x) return;
    in.token[row] = token;
    if (in.counts && token >= 0) ++in.counts[size_t(row) * in.V + token];
    if (!in.n_tokens) return;
    in.history[int(in.seed_step[2 * row + 1]++ % in.ring) * rows + row] = token;
    in.input_ids[row] = max(token, 0);
    for (int axis = 0; axis < 3; ++axis) ++in.position_ids[axis * rows + row];
    ++in.past_len[row];
  }
};
