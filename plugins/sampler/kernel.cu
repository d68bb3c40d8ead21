// Draws one token per row of logits: penalties, allowed mask, temperature, top-k, top-p, min-p. README.md.
//
// Three launches of up to 64 blocks a row: the largest score; how many tokens, of what weight, lie within some
// distances from it; and a list of those within the distance that holds every token which may come, which the row's
// last block cuts exactly and draws from. Probabilities are integers (2^40 for the largest), so their sums do not
// depend on the order in which threads add them, and a row's draw repeats to the bit.
#include "draw.cuh"

namespace {

// A larger float is a larger key; NaN (positive or not) beats all; then the lower id. 0: nothing above -infinity.
__device__ u64 best_key(float score, int id) {
  if (score == -INFINITY) return 0;
  return u64(score != score ? ~0u : Row::ordered(score)) << 32 | (INT_MAX - id);
}

struct Larger {
  __device__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};

// Fills `scores` where anything is adjusted, and finds the largest; greedy rows, and broken ones, end here.
__device__ void find_top(const Row& row) {
  const Part block(row.in.limit, gridDim.x, blockIdx.x), part(block.last - block.first, row.warps, row.warp, block.first);
  u64 key = 0;
  for (int id = part.first + row.lane; id < part.last; id += 32) {
    const float x = row.adjusted(id);
    if (row.adjusts()) row.scores[id] = x;
    key = Larger()(key, best_key(x, id));
  }
  row.publish(row.warp_reduce(key, Larger()));
  if (threadIdx.x == 0) row.work.best[blockIdx.x] = row.most_published();
  if (!row.last_block()) return;
  key = 0;
  for (int i = row.lane; i < int(gridDim.x); i += 32) key = Larger()(key, fresh(row.work.best + i));
  key = row.warp_reduce(key, Larger());
  const int winner = INT_MAX - int(uint32_t(key));
  const float top = key >> 32 == ~0u || key == 0 ? NAN : row.adjusted(winner);
  const bool finite = isfinite(top), drawn = finite && row.s.temperature > 0.0f;
  __syncthreads();
  if (threadIdx.x == 0) row.work.top = top, row.work.live = drawn;
  if (!drawn) row.finish(finite ? winner : -1);
}

// How the row goes on, from what all blocks measured; by one thread, `count` and `weight` being those of one bracket by
// block.
__device__ void decide_list(const Row& row, int bracket, u64 nucleus, const u64* count) {
  unsigned kept = 0;
  for (int b = 0; b < int(gridDim.x); ++b) row.work.offset[b] = kept, kept += unsigned(count[b]);
  row.work.bracket = bracket, row.work.kept = int(kept), row.work.rest = nucleus;
}
__device__ void decide_block(const Row& row, u64 rest, const u64* weight) {
  int b = 0;
  for (; rest >= weight[b]; ++b) rest -= weight[b];
  row.work.bracket = -1, row.work.block = b, row.work.rest = rest;
}

// Tokens and weight within each distance, of the block's tokens; the last block adds up and decides.
__device__ void measure(Row& row, u64* shared) {
  u64 *weights = shared, *counts = shared + kBrackets, *by_block = counts + kBrackets;
  const bool cuts = row.cuts();
  const Part block(row.in.limit, gridDim.x, blockIdx.x), part(block.last - block.first, row.warps, row.warp, block.first);
  u64 weight[kBrackets] = {};
  unsigned count[kBrackets] = {};
  for (int id = part.first + row.lane; id < part.last; id += 32) {
    const float score = row.score(id), distance = row.distance(score);
    const u64 w = cuts ? row.weight(score) : row.above_min_p(row.weight(score));
#pragma unroll
    for (int i = 0; i < kBrackets; ++i)
      if (distance <= edge(i)) weight[i] += w, count[i] += w > 0;
  }
  const auto clear = [&] {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kBrackets; i += blockDim.x) shared[i] = 0;
    __syncthreads();
  };
  clear();
#pragma unroll
  for (int i = 0; i < kBrackets; ++i) {
    const u64 w = row.warp_total(weight[i]), n = row.warp_total(count[i]);
    if (row.lane == 0) atomicAdd(weights + i, w), atomicAdd(counts + i, n);
  }
  __syncthreads();
  if (int i = threadIdx.x; i < kBrackets) {
    row.work.weight[blockIdx.x][i] = weights[i];
    row.work.count[blockIdx.x][i] = unsigned(counts[i]);
  }
  if (!row.last_block()) return;
  clear();
  for (int e = threadIdx.x; e < int(gridDim.x) * kBrackets; e += blockDim.x) {
    atomicAdd(weights + e % kBrackets, fresh(&row.work.weight[0][0] + e));
    atomicAdd(counts + e % kBrackets, u64(fresh(&row.work.count[0][0] + e)));
  }
  __syncthreads();
  const u64 all = weights[kBrackets - 1], nucleus = row.nucleus(all), k = u64(row.in.top_k[row.row]);
  int bracket = 0;
  while (bracket < kBrackets - 1 && (row.counts_tokens() ? counts[bracket] < k : weights[bracket] < nucleus)) ++bracket;
  for (int b = threadIdx.x; b < int(gridDim.x); b += blockDim.x)
    by_block[b] = cuts ? fresh(&row.work.count[b][bracket]) : fresh(&row.work.weight[b][kBrackets - 1]);
  __syncthreads();
  if (threadIdx.x) return;
  if (cuts)
    decide_list(row, bracket, nucleus, by_block);
  else
    decide_block(row, row.random_below(all), by_block);
}

// The block's part of the list: its tokens within the chosen distance, in order.
__device__ void list_tokens(const Row& row, const Part& block) {
  const Part part(block.last - block.first, row.warps, row.warp, block.first);
  const float furthest = edge(row.work.bracket);
  const auto listed = [&](int id) {
    const float score = id < part.last ? row.score(id) : -INFINITY;
    return id < part.last && row.distance(score) <= furthest && row.weight(score) > 0;
  };
  u64 mine = 0;
  for (int id = part.first + row.lane; id < part.last; id += 32) mine += listed(id);
  row.publish(row.warp_total(mine));
  int* to = row.in.list + size_t(row.row) * row.in.V + row.work.offset[blockIdx.x] + row.published(row.warp);
  for (int base = part.first; base < part.last; base += 32) {
    const int is = listed(base + row.lane);
    int rank = is;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int other = __shfl_up_sync(kFullWarp, rank, delta);
      if (row.lane >= delta) rank += other;
    }
    if (is) to[rank - 1] = base + row.lane;
    to += __shfl_sync(kFullWarp, rank, 31);
  }
}

__device__ void draw(Row& row, u64* bins) {
  const Part block(row.in.limit, gridDim.x, blockIdx.x);
  if (row.work.bracket < 0) {
    if (int(blockIdx.x) != row.work.block) return;
    row.finish(Draw(row, {nullptr, block.first, block.last - block.first}, bins).draw(&row.work.rest));
    return;
  }
  list_tokens(row, block);
  if (!row.last_block()) return;
  Draw kept(row, {row.in.list + size_t(row.row) * row.in.V, 0, row.work.kept}, bins);
  kept.cut();
  row.finish(kept.draw());
}

}  // namespace

#define SAMPLER_KERNEL(name, body)                                                                                      \
  extern "C" __global__ void __launch_bounds__(512, 1) sampler_##name(                                                     \
      const float* logits, const float* settings, const int* top_k, u64* seed_step, int* counts, const uint32_t* allowed, \
      float* scores, int* list, void* work, int* token, long long* input_ids, long long* position_ids, int* past_len,   \
      const int* n_tokens, int* history, int V, int limit, int ring) {                                                  \
    begin_dependent();                                                                                                  \
    SHARED_MEMORY(memory);                                                                                              \
    u64 *bins = reinterpret_cast<u64*>(memory), *sums = bins + kBins;                                                   \
    const Sampler in = {logits, reinterpret_cast<const Settings*>(settings), top_k, seed_step, counts, allowed, scores, \
                        list, static_cast<Work*>(work), token, input_ids, position_ids, past_len, n_tokens, history, V, \
                        limit, ring};                                                                                   \
    Row row(in, sums);                                                                                                  \
    if (row.idle()) return;                                                                                             \
    body;                                                                                                               \
  }                                                                                                                     \
  EXPORT_KERNEL(sampler_##name)

#define WHILE_LIVE(call)               \
  if (!row.work.live) return;          \
  row.top = row.work.top;              \
  call

SAMPLER_KERNEL(top, find_top(row))
SAMPLER_KERNEL(measure, WHILE_LIVE(measure(row, bins)))
SAMPLER_KERNEL(draw, WHILE_LIVE(draw(row, bins)))
