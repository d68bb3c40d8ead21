// Top-k, top-p, min-p and the draw over some tokens of a row, by one block.
#pragma once
#include "row.cuh"

constexpr int kDigits = 5, kBins = 256;

// Tokens in the order of their ids: those of a list, or `count` from id `first` on.
struct Tokens {
  const int* list;
  int first, count;
  __device__ int operator[](int i) const { return list ? fresh(list + i) : first + i; }
};

struct Draw : Row {
  const Tokens tokens;
  const Part part;  // this warp's
  u64* const bins;  // shared, [256]
  // What is kept: keys above `threshold`, and the first `ties` ids that have it.
  u64 threshold = 0, ties = ~0ull;

  __device__ Draw(const Row& row, const Tokens& tokens, u64* bins)
      : Row(row), tokens(tokens), part(tokens.count, warps, warp), bins(bins) {}

  // Calls f(score) for the warp's tokens.
  template <class F>
  __device__ void each(F&& f) const {
    for (int i = part.first + lane; i < part.last; i += 32) f(score(tokens[i]));
  }

  // Larger for larger scores; the top digit spreads the scores that matter over the bins.
  __device__ u64 key(float score) const {
    return u64(255 - min(255, int(fminf(distance(score), 31.0f) * 8.0f))) << 32 | ordered(score);
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
      each([&](float score) {
        const u64 w = weight(score), k = key(score);
        if (w && k >= threshold && k >> 8 * (digit + 1) == prefix) atomicAdd(bins + (k >> 8 * digit & 255), Count ? 1ull : w);
      });
      __syncthreads();
      int bin = kBins - 1;
      for (; bin >= 0 && above + bins[bin] < target; --bin) above += bins[bin];
      if (bin < 0) return 0;
      prefix = prefix << 8 | bin;
    }
    return prefix;
  }

  __device__ u64 kept_weight(float score) const { return key(score) >= threshold ? above_min_p(weight(score)) : 0; }

  __device__ u64 nucleus_of_kept() const {
    u64 mine = 0;
    each([&](float score) { mine += key(score) >= threshold ? weight(score) : 0; });
    publish(warp_total(mine));
    return nucleus(published(warps));
  }

  __device__ void cut() {
    u64 above;
    if (counts_tokens()) threshold = select<true>(in.top_k[row], above);
    if (s.top_p >= 1.0f) return;
    const u64 target = counts_tokens() ? nucleus_of_kept() : work.rest;
    threshold = select<false>(target, above);
    u64 tied = 0;  // the weight of each token that has this key; the same for all
    each([&](float score) {
      if (key(score) == threshold) tied = weight(score);
    });
    publish(warp_reduce(tied, [](u64 a, u64 b) { return a > b ? a : b; }));
    tied = most_published();
    ties = (target - above + tied - 1) / tied;
  }

  // Calls f(id, weight) for the warp's tokens in order, 32 at a time, given how many ties earlier warps have.
  template <class F>
  __device__ void each_kept(u64 tied_before, F&& f) const {
    for (int base = part.first; base < part.last; base += 32) {
      const int i = base + lane, id = i < part.last ? tokens[i] : INT_MAX;
      u64 w = i < part.last ? kept_weight(score(id)) : 0;
      const u64 tie = w && key(score(id)) == threshold;
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

  // The token before which the kept tokens weigh no more than a random part of all; or, `given`, no more than that.
  __device__ int draw(const u64* given = nullptr) {
    u64 tied_before = 0, mine = 0;
    if (ties != ~0ull) {
      each([&](float score) { mine += kept_weight(score) && key(score) == threshold; });
      publish(warp_total(mine));
      tied_before = published(warp);
      mine = 0;
    }
    each_kept(tied_before, [&](int, u64 w) { return mine += w, true; });
    publish(warp_total(mine));
    const u64 before = published(warp), after = before + sums[warp];
    const u64 target = given ? *given : random_below(published(warps));
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
        if (found != INT_MAX && lane == 0) sums[0] = found;
        return found == INT_MAX;
      });
    }
    __syncthreads();
    return int(sums[0]);
  }
};
