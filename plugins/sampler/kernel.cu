// Draws one token per row of logits: penalties, allowed mask, temperature, top-k, top-p, min-p. README.md.
//
// One block per row. Probabilities are integers (2^40 for the largest), so their sums do not depend on the order in
// which threads add them, and a row's draw repeats to the bit. Top-k and top-p find their thresholds by radix
// selection over a 40-bit key, digit by digit, instead of sorting.
#include <limits.h>

#include "../common/vector.cuh"
#include "../common/warp.cuh"

namespace {

typedef unsigned long long u64;

constexpr int kDigits = 5, kBins = 256;
constexpr float kUnit = 1099511627776.0f;  // 2^40
constexpr int kPromptBit = 1 << 30;        // of a token's count: it is in the prompt

#ifdef DELTART_CPU_SHIM
inline u64 multiply_high(u64 a, u64 b) { return u64((unsigned __int128)a * b >> 64); }
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
#else
__device__ __forceinline__ u64 multiply_high(u64 a, u64 b) { return __umul64hi(a, b); }
__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
#endif

// The first 64 random bits of Philox 4x64-10 with key (seed, 0) at counter (0, 0, 0, step), as numpy counts: it steps
// the counter before it draws.
__device__ u64 philox(u64 seed, u64 step) {
  u64 c[4] = {1, 0, 0, step}, key[2] = {seed, 0};
  for (int round = 0; round < 10; ++round) {
    const u64 a = 0xD2E7470EE14C6C93ull, b = 0xCA5A826395121157ull;
    const u64 next[4] = {multiply_high(b, c[2]) ^ c[1] ^ key[0], b * c[2], multiply_high(a, c[0]) ^ c[3] ^ key[1], a * c[0]};
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key[0] += 0x9E3779B97F4A7C15ull, key[1] += 0xBB67AE8584CAA73Bull;
  }
  return c[0];
}

// How a row is sampled, as runtime/sample.py has it.
struct Settings {
  float temperature, top_p, min_p, presence, frequency, repetition;
};

struct Sampler {
  const float* logits;       // [B, V]
  const Settings* settings;  // [B]
  const int* top_k;          // [B], 0 keeps all
  u64* seed_step;            // [B, 2]; the step is raised where the row is fed
  int* counts;               // [B, V] times generated, plus kPromptBit; the drawn token's is raised. Null: no penalties
  const uint32_t* allowed;   // [B, ceil(V / 32)], or null
  float* scores;             // [B, V] scratch
  int* token;                // [B]; -1 where the largest score is not finite
  int V, limit;              // ids from `limit` on are padding
};

// The inputs of the next decode step, which the token goes into. All null: nothing is fed.
struct Feed {
  long long *input_ids, *position_ids;  // [B], [3, B]
  int* past_len;                        // [B]
  const int* n_tokens;                  // [B]; a row without a token is idle: nothing is drawn
  int* history;                         // [ring, B] tokens, by step
  int ring;

  __device__ void operator()(int row, int rows, u64* seed_step, int token) const {
    history[int(seed_step[1]++ % ring) * rows + row] = token;
    input_ids[row] = max(token, 0);
    for (int axis = 0; axis < 3; ++axis) ++position_ids[axis * rows + row];
    ++past_len[row];
  }
};

struct Row {
  const Sampler& in;
  const Settings s;
  int row, lane, warp, warps, first, last;  // the warp's part of the ids
  float* scores;
  u64 *bins, *shared;  // [256], [warps + 2]
  float top = -INFINITY;
  // What is kept: keys above `threshold`, and the first `ties` ids that have it.
  u64 threshold = 0, ties = ~0ull;

  __device__ Row(const Sampler& in, unsigned char* memory)
      : in(in), s(in.settings[blockIdx.x]), row(blockIdx.x), lane(threadIdx.x % 32), warp(threadIdx.x / 32),
        warps(blockDim.x / 32), scores(in.scores + size_t(row) * in.V), bins(reinterpret_cast<u64*>(memory)),
        shared(bins + kBins) {
    const int part = ((in.limit + warps - 1) / warps + 31) / 32 * 32;
    first = min(warp * part, in.limit), last = min(first + part, in.limit);
  }

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
    if (lane == 0) shared[warp] = mine;
    __syncthreads();
  }
  // The sum of the warps' published values below `end`.
  __device__ u64 published(int end) const {
    u64 total = 0;
    for (int i = 0; i < end; ++i) total += shared[i];
    return total;
  }

  // Fills `scores`; the largest score and its lowest id.
  __device__ int best() {
    float most = -INFINITY;
    int id = INT_MAX;
    for (int i = first + lane; i < last; i += 32) {
      const float x = adjusted(i);
      scores[i] = x;
      if (x > most || x != x) most = x, id = i;
      if (x != x) break;
    }
    // A larger float is a larger key; NaN (positive or not) beats all; then the lower id.
    const u64 key = id == INT_MAX ? 0 : u64(most != most ? ~0u : ordered(most)) << 32 | (INT_MAX - id);
    publish(warp_reduce(key, [](u64 a, u64 b) { return a > b ? a : b; }));
    u64 all = 0;
    for (int i = 0; i < warps; ++i) all = shared[i] > all ? shared[i] : all;
    const int winner = INT_MAX - int(uint32_t(all));
    if (all >> 32 == ~0u || all == 0) return -1;
    top = scores[winner];
    return isfinite(top) ? winner : -1;
  }

  __device__ static uint32_t ordered(float x) {
    const uint32_t bits = bits_of(x == 0.0f ? 0.0f : x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  // exp((score - top) / temperature), 2^40 for the largest.
  __device__ u64 weight(float score) const { return u64(rintf(expf((score - top) / s.temperature) * kUnit)); }
  // Larger for larger scores; the top digit spreads the scores that matter over the bins.
  __device__ u64 key(float score) const {
    return u64(255 - min(255, int(fminf((top - score) / s.temperature, 31.0f) * 8.0f))) << 32 | ordered(score);
  }

  // The largest key whose tokens, with those of larger keys, weigh `target` or more (of those that are kept so far);
  // 0 if all of them together do not. `above` is what the larger keys weigh.
  template <bool Count>
  __device__ u64 select(u64 target, u64& above) {
    u64 prefix = 0;
    above = 0;
    for (int digit = kDigits - 1; digit >= 0; --digit) {
      __syncthreads();
      for (int i = threadIdx.x; i < kBins; i += blockDim.x) bins[i] = 0;
      __syncthreads();
      for (int i = first + lane; i < last; i += 32) {
        const u64 w = weight(scores[i]), k = key(scores[i]);
        if (w && k >= threshold && k >> 8 * (digit + 1) == prefix) atomicAdd(bins + (k >> 8 * digit & 255), Count ? 1ull : w);
      }
      __syncthreads();
      int bin = kBins - 1;
      for (; bin >= 0 && above + bins[bin] < target; --bin) above += bins[bin];
      if (bin < 0) return 0;
      prefix = prefix << 8 | bin;
    }
    return prefix;
  }

  __device__ u64 kept_weight(float score) const {
    const u64 w = weight(score);
    return key(score) >= threshold && w >= u64(rintf(s.min_p * kUnit)) ? w : 0;
  }

  __device__ void cut() {
    u64 above;
    const int k = in.top_k[row];
    if (k > 0 && k < in.limit) threshold = select<true>(k, above);
    if (s.top_p >= 1.0f) return;
    u64 mine = 0;
    for (int i = first + lane; i < last; i += 32)
      if (key(scores[i]) >= threshold) mine += weight(scores[i]);
    publish(warp_total(mine));
    const u64 target = u64(ceil(double(s.top_p) * double(published(warps))));
    const u64 nucleus = select<false>(target, above);
    if (nucleus == 0) return;
    threshold = nucleus;
    u64 tied = 0;  // the weight of each token that has this key; the same for all
    for (int i = first + lane; i < last; i += 32)
      if (key(scores[i]) == threshold) tied = weight(scores[i]);
    publish(warp_reduce(tied, [](u64 a, u64 b) { return a > b ? a : b; }));
    for (int i = 0; i < warps; ++i) tied = shared[i] > tied ? shared[i] : tied;
    ties = (target - above + tied - 1) / tied;
  }

  // Calls f(id, weight) for the warp's ids in order, 32 at a time, given how many ties earlier warps have.
  template <class F>
  __device__ void each_kept(u64 tied_before, F&& f) const {
    for (int base = first; base < last; base += 32) {
      const int id = base + lane;
      u64 w = id < last ? kept_weight(scores[id]) : 0;
      const u64 tie = w && key(scores[id]) == threshold;
      u64 rank = tie;
      if (ties != ~0ull) {
#pragma unroll
        for (int delta = 1; delta < 32; delta *= 2) {
          const u64 other = __shfl_up_sync(kFullWarp, rank, delta);
          if (lane >= delta) rank += other;
        }
        if (tie && tied_before + rank > ties) w = 0;
        tied_before += __shfl_sync(kFullWarp, rank, 31);
      }
      if (!f(id, w)) return;
    }
  }

  __device__ int draw() {
    u64 tied_before = 0;
    if (ties != ~0ull) {
      u64 mine = 0;
      for (int i = first + lane; i < last; i += 32) mine += kept_weight(scores[i]) && key(scores[i]) == threshold;
      publish(warp_total(mine));
      tied_before = published(warp);
    }
    u64 mine = 0;
    each_kept(tied_before, [&](int, u64 w) { return mine += w, true; });
    publish(warp_total(mine));
    const u64 before = published(warp), after = before + shared[warp], total = published(warps);
    const u64* at = in.seed_step + 2 * row;
    const u64 target = multiply_high(philox(at[0], at[1]) & ~2047ull, total);  // 53 random bits, as a double has
    __syncthreads();
    if (before <= target && target < after) {
      u64 sum = before;
      each_kept(tied_before, [&](int id, u64 w) {
#pragma unroll
        for (int delta = 1; delta < 32; delta *= 2) {
          const u64 other = __shfl_up_sync(kFullWarp, w, delta);
          if (lane >= delta) w += other;
        }
        const int found = warp_reduce(sum + w > target ? id : INT_MAX, [](int a, int b) { return min(a, b); });
        sum += __shfl_sync(kFullWarp, w, 31);
        if (found != INT_MAX && lane == 0) shared[0] = found;
        return found == INT_MAX;
      });
    }
    __syncthreads();
    return int(shared[0]);
  }

  __device__ void run(const Feed& feed) {
    if (feed.n_tokens && feed.n_tokens[row] == 0) return;
    int token = best();
    if (token >= 0 && s.temperature > 0.0f) {
      cut();
      token = draw();
    }
    if (threadIdx.x) return;
    in.token[row] = token;
    if (in.counts && token >= 0) ++in.counts[size_t(row) * in.V + token];
    if (feed.n_tokens) feed(row, gridDim.x, in.seed_step + 2 * row, token);
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(1024)
    sampler(const float* logits, const float* settings, const int* top_k, u64* seed_step, int* counts,
            const uint32_t* allowed, float* scores, int* token, long long* input_ids, long long* position_ids,
            int* past_len, const int* n_tokens, int* history, int V, int limit, int ring) {
  SHARED_MEMORY(memory);
  const Sampler in = {logits, reinterpret_cast<const Settings*>(settings), top_k, seed_step, counts, allowed, scores, token, V, limit};
  Row(in, memory).run({input_ids, position_ids, past_len, n_tokens, history, ring});
}
EXPORT_KERNEL(sampler)
