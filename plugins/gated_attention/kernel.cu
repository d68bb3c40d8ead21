// Attention of T new tokens over a KV cache, with the append of their K and V and the output gate. README.md.
//
// A block owns one KV head of one slot, up to 16 MT query rows (token, head of the group), and one part ("split") of
// the keys. Four warps: each scores 8 of a tile's 32 keys, all share the probabilities through shared memory,
// and each accumulates a quarter of the output columns. Keys of the new tokens come from k and v, never from the
// cache, so that the order of blocks does not matter. Grid (splits, row tiles, slots * kv heads).
// With one split the block writes o; with more it leaves (sum, max) per row to gated_attention_combine.
#include "../common/fp8.cuh"

namespace {

constexpr int kKeys = 32, kWarps = 4, kScoreStride = kKeys + 8, kFewestTiles = 2, kCombiners = 4;
constexpr float kLog2e = 1.44269504f, kMasked = -INFINITY;

template <class Cache>
struct Attention {
  const bf16 *q, *k, *v, *gate;  // [B, T, heads * D]
  Cache *k_cache, *v_cache;      // [pages, kv_heads, page_size, D]
  const int* page_table;         // [B, max_pages], or null: slot b owns page b
  const float *k_scale, *v_scale;  // [kv_heads], of an E4M3 cache
  const int *past_len, *n_tokens;
  bf16* o;
  float* partial;  // [B, T, heads, splits, D], then (max, sum) [B, T, heads, splits, 2]
  int tokens, heads, kv_heads, page_size, max_pages;

  __device__ int live(int slot) const { return min(n_tokens[slot], tokens); }
};

__device__ __forceinline__ int tiles_of(int keys) { return (keys + kKeys - 1) / kKeys; }

// How the key tiles that one token sees are dealt out: `each` to every split before `live`. It follows from the token's
// position, so its sums do not depend on what else is in the call.
struct Partition {
  int each, live;
  __device__ Partition(int seen, int splits)
      : each(max(kFewestTiles, (tiles_of(seen) + splits - 1) / splits)), live((tiles_of(seen) + each - 1) / each) {}
};

struct Range {
  int first, end;
};

template <int D, int MT, class Cache>
struct Block {
  static constexpr bool kBf16 = sizeof(Cache) == 2;
  static constexpr int kStride = D + 8, kColumns = D / kWarps, kTiles = kColumns / 8, kVector = 16 / sizeof(Cache);

  const Attention<Cache>& in;
  int lane, warp, g, t, slot, head, group, per_tile, first_token, past, live, each;  // `each` of the first token
  bf16 *Q, *KV;   // [16 MT, D]; two stages of K and V [32, D]
  float* scores;  // [16 MT, 32]
  float inverse[2] = {1.0f, 1.0f};  // of the scales of K and V
  float sum[MT][kTiles][4] = {}, top[MT][2], total[MT][2] = {};

  __device__ Block(const Attention<Cache>& in, unsigned char* memory)
      : in(in), lane(threadIdx.x % 32), warp(threadIdx.x / 32), g(lane / 4), t(lane % 4), slot(blockIdx.z / in.kv_heads),
        head(blockIdx.z % in.kv_heads), group(in.heads / in.kv_heads), per_tile(16 * MT / group),
        first_token(blockIdx.y * per_tile), past(in.past_len[slot]), live(in.live(slot)),
        each(Partition(past + first_token + 1, gridDim.x).each), Q(reinterpret_cast<bf16*>(memory)), KV(Q + 16 * MT * kStride),
        scores(reinterpret_cast<float*>(KV + 4 * kKeys * kStride)) {
#pragma unroll
    for (int m = 0; m < MT; ++m) top[m][0] = top[m][1] = kMasked;
    if (!kBf16) inverse[0] = 1.0f / scale(0), inverse[1] = 1.0f / scale(1);
  }

  __device__ bf16* tile(int stage, int which) const { return KV + (stage * 2 + which) * kKeys * kStride; }
  __device__ size_t cache_row(int position) const {
    const int page = in.page_table ? in.page_table[slot * in.max_pages + position / in.page_size] : slot;
    return ((size_t(page) * in.kv_heads + head) * in.page_size + (in.page_table ? position % in.page_size : position)) * D;
  }
  __device__ size_t new_row(int token) const { return ((size_t(slot) * in.tokens + token) * in.kv_heads + head) * D; }
  // Row r of the tile as (token, head): the offset of its D values in q, gate and o; false if there is no such row.
  __device__ bool query_row(int r, int& token, size_t& at) const {
    token = first_token + r / group;
    at = ((size_t(slot) * in.tokens + token) * in.heads + head * group + r % group) * D;
    return r < per_tile * group && token < in.tokens;
  }

  __device__ void load_queries() {
    for (int e = threadIdx.x; e < 16 * MT * (D / 8); e += blockDim.x) {
      const int row = e / (D / 8), column = e % (D / 8) * 8;
      int token;
      size_t at;
      const bool is = query_row(row, token, at) && token < live;
      copy_async(Q + row * kStride + column, in.q + (is ? at + column : 0), is);
    }
  }

  // 16 bytes of new values as the cache will hold them; E4M3 is rounded from the product with 1 / scale.
  __device__ uint4 quantize(const bf16* from, float inverse) const {
    if constexpr (kBf16) return *reinterpret_cast<const uint4*>(from);
    return make_uint4(four_codes(from, inverse), four_codes(from + 4, inverse), four_codes(from + 8, inverse),
                      four_codes(from + 12, inverse));
  }
  __device__ static uint32_t four_codes(const bf16* from, float inverse) {
    float x[4];
    load(from, x);
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) codes |= uint32_t(to_e4m3(x[i] * inverse)) << 8 * i;
    return codes;
  }
  __device__ float scale(int which) const { return kBf16 ? 1.0f : (which ? in.v_scale : in.k_scale)[head]; }

  __device__ void append() {
    const int count = min(per_tile, live - first_token);
    for (int e = threadIdx.x; e < count * (D / kVector); e += blockDim.x) {
      const int token = first_token + e / (D / kVector), column = e % (D / kVector) * kVector;
      const size_t to = cache_row(past + token) + column, from = new_row(token) + column;
      *reinterpret_cast<uint4*>(in.k_cache + to) = quantize(in.k + from, inverse[0]);
      *reinterpret_cast<uint4*>(in.v_cache + to) = quantize(in.v + from, inverse[1]);
    }
  }

  // Keys [32 index, + 32) to a stage; zeros from `end` on.
  __device__ void fetch(int index, int stage, int end) {
#pragma unroll 4
    for (int e = threadIdx.x; e < kKeys * (D / kVector); e += blockDim.x) {
      const int row = e / (D / kVector), column = e % (D / kVector) * kVector;
      const int position = min(index * kKeys + row, end - 1);
      const bool is = index * kKeys + row < end, cached = position < past;
      const size_t from = (cached ? cache_row(position) : new_row(position - past)) + column;
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const Cache* cache = which ? in.v_cache : in.k_cache;
        const bf16* fresh = which ? in.v : in.k;
        bf16* to = tile(stage, which) + row * kStride + column;
        if constexpr (kBf16) {
          copy_async(to, cached ? cache + from : fresh + from, is);
        } else {
          uint4 word = make_uint4(0, 0, 0, 0);
          if (is) word = cached ? *reinterpret_cast<const uint4*>(cache + from) : quantize(fresh + from, inverse[which]);
          uint4 low, high;
          e4m3_to_bf16(word.x, low.x, low.y), e4m3_to_bf16(word.y, low.z, low.w);
          e4m3_to_bf16(word.z, high.x, high.y), e4m3_to_bf16(word.w, high.z, high.w);
          *reinterpret_cast<uint4*>(to) = low;
          *reinterpret_cast<uint4*>(to + 8) = high;
        }
      }
    }
    commit_copies();
  }

  // This warp's 8 keys against every row, to `scores`.
  __device__ void score(const bf16* K) {
    float c[MT][4] = {};
#pragma unroll 4
    for (int d = 0; d < D; d += 32) {
      BfPair keys[4];
      load_matrices<false>(keys, K + (warp * 8 + lane % 8) * kStride + d + lane / 8 * 8);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const BfPair b[2] = {keys[2 * half], keys[2 * half + 1]};
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          BfPair a[4];
          load_matrices<false>(a, Q + (m * 16 + lane % 16) * kStride + d + half * 16 + lane / 16 * 8);
          mma(c[m], a, b);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(scores + (m * 16 + half * 8 + g) * kScoreStride + warp * 8 + 2 * t) =
            make_float2(c[m][2 * half], c[m][2 * half + 1]);
  }

  // The keys of this split that row r sees. With several splits a tile's rows are fewer than the tokens after which `each`
  // grows again.
  __device__ Range keys_of(int r) const {
    const int token = first_token + r / group, seen = past + token + 1, splits = gridDim.x;
    if (token >= live) return {0, 0};
    const int mine = (splits == 1 ? tiles_of(seen) : each + int(tiles_of(seen) > each * splits)) * kKeys;
    return {int(blockIdx.x) * mine, min((int(blockIdx.x) + 1) * mine, seen)};
  }

  // Probabilities of rows g and g + 8 of tile m, as left operands of two products; rescales the sums so far.
  __device__ void soften(int m, int first, float factor, BfPair (&p)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m * 16 + half * 8 + g;
      const Range keys = keys_of(row);
      float x[8], most = top[m][half];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = *reinterpret_cast<const float2*>(scores + row * kScoreStride + i * 8 + 2 * t);
        const int key = first + i * 8 + 2 * t;
        x[2 * i] = key >= keys.first && key < keys.end ? two.x * factor : kMasked;
        x[2 * i + 1] = key + 1 >= keys.first && key + 1 < keys.end ? two.y * factor : kMasked;
        most = fmaxf(most, fmaxf(x[2 * i], x[2 * i + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const float base = most == kMasked ? 0.0f : most, old = exp2f(top[m][half] - base);
      float added = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = exp2f(x[i] - base), added += x[i];
      top[m][half] = most;
      total[m][half] = fmaf(total[m][half], old, added);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) sum[m][n][2 * half] *= old, sum[m][n][2 * half + 1] *= old;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        p[s][half] = pair(x[4 * s], x[4 * s + 1]);
        p[s][half + 2] = pair(x[4 * s + 2], x[4 * s + 3]);
      }
    }
  }

  // This warp's columns of P V.
  __device__ void accumulate(const bf16* V, int first, float factor) {
    BfPair p[MT][2][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) soften(m, first, factor, p[m]);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        BfPair b[4];
        load_matrices<true>(b, V + (s * 16 + lane % 16) * kStride + warp * kColumns + n * 8 + lane / 16 * 8);
        const BfPair left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < MT; ++m) mma(sum[m][n], p[m][s], left), mma(sum[m][n + 1], p[m][s], right);
      }
  }

  __device__ void write_output(int m, int half, float whole) const {
    int token;
    size_t at;
    if (!query_row(m * 16 + half * 8 + g, token, at)) return;
    const float by = token < live ? scale(1) / whole : 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const size_t to = at + warp * kColumns + n * 8 + 2 * t;
      float gate[2] = {};
      if (token < live) load(in.gate + to, gate);
      const float two[2] = {sum[m][n][2 * half] * by * sigmoid(gate[0]), sum[m][n][2 * half + 1] * by * sigmoid(gate[1])};
      store(in.o + to, two);
    }
  }

  __device__ void write_partial(int m, int half, float whole) const {
    int token;
    size_t at;
    if (!query_row(m * 16 + half * 8 + g, token, at) || token >= live) return;
    const size_t row = at / D * gridDim.x + blockIdx.x, rows = size_t(gridDim.z / in.kv_heads) * in.tokens * in.heads * gridDim.x;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float two[2] = {sum[m][n][2 * half] * scale(1), sum[m][n][2 * half + 1] * scale(1)};
      store(in.partial + row * D + warp * kColumns + n * 8 + 2 * t, two);
    }
    if (warp == 0 && t == 0) store(in.partial + rows * D + row * 2, {top[m][half], whole});
  }

  __device__ void finish() const {
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float whole = total[m][half];
        whole += __shfl_xor_sync(0xffffffffu, whole, 1);
        whole += __shfl_xor_sync(0xffffffffu, whole, 2);
        if (gridDim.x == 1)
          write_output(m, half, whole);
        else
          write_partial(m, half, whole);
      }
  }

  __device__ void run() {
    const int last_token = min(first_token + per_tile, live);
    const int end = last_token > first_token ? past + last_token : 0;
    const int most = Partition(end, gridDim.x).each;  // of the last token
    const int first = blockIdx.x * each, stop = min((int(blockIdx.x) + 1) * most, tiles_of(end));
    if (blockIdx.x == 0) append();
    if (gridDim.x > 1 && first >= stop) return;
    load_queries();
    if (first < stop) fetch(first, 0, end);
    const float factor = rsqrtf(float(D)) * kLog2e * scale(0);
    for (int index = first; index < stop; ++index) {
      const int stage = (index - first) % 2;
      wait_copies<0>();
      __syncthreads();
      if (index + 1 < stop) fetch(index + 1, 1 - stage, end);
      score(tile(stage, 0));
      __syncthreads();
      accumulate(tile(stage, 1), index * kKeys, factor);
    }
    finish();
  }
};

// The splits of one (token, head): every quarter of the threads takes a quarter of the splits, a thread four columns.
__device__ void combine(const float* partial, const bf16* gate, const int* past_len, const int* n_tokens, bf16* o,
                        int splits, int D, float* memory) {
  const int head = blockIdx.x, token = blockIdx.y, slot = blockIdx.z, part = threadIdx.x / (D / 4);
  const int column = threadIdx.x % (D / 4) * 4, live = min(n_tokens[slot], int(gridDim.y));
  const size_t row = (size_t(slot) * gridDim.y + token) * gridDim.x + head, at = row * D + column;
  const size_t rows = size_t(gridDim.z) * gridDim.y * gridDim.x * splits;
  float sum[4] = {}, total = 0.0f;
  if (token < live) {
    const int seen = Partition(past_len[slot] + token + 1, splits).live, mine = (seen + kCombiners - 1) / kCombiners;
    const float* stats = partial + rows * D + row * splits * 2;
    float most = kMasked;
    for (int i = threadIdx.x % 32; i < seen; i += 32) most = fmaxf(most, stats[2 * i]);
#pragma unroll
    for (int mask = 16; mask; mask /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, mask));
#pragma unroll 4
    for (int i = part * mine; i < min(seen, (part + 1) * mine); ++i) {
      const float weight = exp2f(stats[2 * i] - most);
      float x[4];
      load(partial + (row * splits + i) * D + column, x);
      total = fmaf(weight, stats[2 * i + 1], total);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = fmaf(weight, x[j], sum[j]);
    }
  }
  float* totals = memory + kCombiners * D;
  store(memory + part * D + column, sum);
  if (column == 0) totals[part] = total;
  __syncthreads();
  if (part) return;
  for (int other = 1; other < kCombiners; ++other) {
    float x[4];
    load(memory + other * D + column, x);
    total += totals[other];
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += x[j];
  }
  if (token < live) {
    float g[4];
    load(gate + at, g);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] *= sigmoid(g[j]) / total;
  }
  store(o + at, sum);
}

// Blocks per multiprocessor that the compiler must leave room for; 0: it chooses. Left to itself it would squeeze these
// three kernels into the registers of one block more on some targets, by spilling.
template <int D, int MT, class Cache>
constexpr int kResident = D > 128 || sizeof(Cache) != 1 ? 0 : MT == 3 ? (D == 128 ? 3 : 4) : D == 64 ? 7 : 0;

}  // namespace

#define ATTENTION_KERNEL(D, MT, Cache, suffix)                                                                        \
  extern "C" __global__ void __launch_bounds__(128, (kResident<D, MT, Cache>)) gated_attention_##suffix##_d##D##_m##MT( \
      const bf16* q, const bf16* k, const bf16* v, const bf16* gate, Cache* k_cache, Cache* v_cache,                  \
      const int* page_table, const float* k_scale, const float* v_scale, const int* past_len, const int* n_tokens,    \
      bf16* o, float* partial, int tokens, int heads, int kv_heads, int page_size, int max_pages) {                   \
    begin_dependent();                                                                                                \
    SHARED_MEMORY(memory);                                                                                            \
    const Attention<Cache> in = {q, k, v, gate, k_cache, v_cache, page_table, k_scale, v_scale, past_len, n_tokens,   \
                                 o, partial, tokens, heads, kv_heads, page_size, max_pages};                          \
    Block<D, MT, Cache>(in, memory).run();                                                                            \
  }                                                                                                                   \
  EXPORT_KERNEL(gated_attention_##suffix##_d##D##_m##MT)

#define ATTENTION_CACHES(D, MT)         \
  ATTENTION_KERNEL(D, MT, bf16, bf16)   \
  ATTENTION_KERNEL(D, MT, uint8_t, e4m3)
#define ATTENTION_ROWS(D) \
  ATTENTION_CACHES(D, 1)  \
  ATTENTION_CACHES(D, 3)

ATTENTION_ROWS(64)
ATTENTION_ROWS(128)
ATTENTION_ROWS(256)

extern "C" __global__ void __launch_bounds__(256) gated_attention_combine(
    const float* partial, const bf16* gate, const int* past_len, const int* n_tokens, bf16* o, int splits, int D) {
  begin_dependent();
  SHARED_MEMORY(memory);
  combine(partial, gate, past_len, n_tokens, o, splits, D, reinterpret_cast<float*>(memory));
}
EXPORT_KERNEL(gated_attention_combine)
