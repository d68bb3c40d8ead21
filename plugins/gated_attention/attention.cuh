// What every kernel of the attention is told, where rows of keys are, and how keys are dealt out.
#pragma once
#include "../common/fp8.cuh"
#include "../qk_norm_rope/turn.cuh"

namespace {

constexpr int kKeys = 32, kWarps = 4, kScoreStride = kKeys + 8, kFewestTiles = 2, kCombiners = 4;
constexpr float kLog2e = 1.44269504f, kMasked = -INFINITY;

template <class Cache>
struct Attention {
  const bf16 *q, *k, *v, *gate;  // [B, T, heads * D]; Raw: q and gate of 2 heads * D
  Cache *k_cache, *v_cache;      // [pages, kv_heads, page_size, D]
  const int* page_table;         // [B, max_pages], or null: slot b owns page b
  const float *k_scale, *v_scale;  // [kv_heads], of an E4M3 cache
  const int *past_len, *n_tokens;
  bf16* o;
  float* partial;  // [B, T, heads, splits, D], then (max, sum) [B, T, heads, splits, 2]
  int tokens, heads, kv_heads, page_size, max_pages;

  __device__ int live(int slot) const { return min(n_tokens[slot], tokens); }
  // Where D values of a head begin: of a position in a cache, and of a token in k and v.
  __device__ size_t cache_row(int slot, int head, int position, int D) const {
    const int page = page_table ? page_table[slot * max_pages + position / page_size] : slot;
    return ((size_t(page) * kv_heads + head) * page_size + (page_table ? position % page_size : position)) * D;
  }
  __device__ size_t new_row(int slot, int head, int token, int D) const {
    return ((size_t(slot) * tokens + token) * kv_heads + head) * D;
  }
};

// Queries and new keys as they are used.
struct Made {
  static constexpr bool kRaw = false;
};
// As the projections leave them, a gate behind each query head: the block makes the heads that it needs (../qk_norm_rope).
struct Raw {
  static constexpr bool kRaw = true;
  Parameter q_weight, k_weight;
  Turn<bf16> turn;
};

__device__ __forceinline__ int tiles_of(int keys) { return (keys + kKeys - 1) / kKeys; }

// How the key tiles that one token sees are dealt out: `each` to every split before `live`. It follows from the token's
// position, so its sums do not depend on what else is in the call.
struct Partition {
  int each, live;
  __device__ Partition(int seen, int splits)
      : each(max(kFewestTiles, (tiles_of(seen) + splits - 1) / splits)), live((tiles_of(seen) + each - 1) / each) {}
};

}  // namespace
