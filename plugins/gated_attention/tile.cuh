// A block's part of the attention: up to 16 MT query rows of one KV head over one part of the keys. README.md.
//
// A block owns one KV head of one slot, up to 16 MT query rows (token, head of the group), and one part ("split") of
// the keys. Four warps: each scores 8 of a tile's 32 keys, all share the probabilities through shared memory,
// and each accumulates a quarter of the output columns. Keys of the new tokens come from k and v, never from the
// cache, so that the order of blocks does not matter. Grid (splits, row tiles, slots * kv heads).
// With one split the block writes o; with more it leaves sums and (max, sum) of every row to who combines them.
#pragma once
#include "attention.cuh"

namespace {

struct Range {
  int first, end;
};

template <int D, int MT, class Cache, class Heads = Made>
struct Block {
  static constexpr bool kBf16 = sizeof(Cache) == 2;
  static constexpr int kStride = D + 8, kColumns = D / kWarps, kTiles = kColumns / 8, kVector = 16 / sizeof(Cache);

  const Attention<Cache>& in;
  Heads heads;
  int lane, warp, g, t, slot, head, group, per_tile, first_token, past, live, each;  // `each` of the first token
  int end;  // of the keys that the tile's tokens see; 0 where no token lives
  bf16 *Q, *KV;   // [16 MT, D]; two stages of K and V [32, D]
  float* scores;  // [16 MT, 32]
  float inverse[2] = {1.0f, 1.0f};  // of the scales of K and V
  float sum[MT][kTiles][4] = {}, top[MT][2], total[MT][2] = {};

  __device__ Block(const Attention<Cache>& in, const Heads& heads, unsigned char* memory)
      : in(in), heads(heads), lane(threadIdx.x % 32), warp(threadIdx.x / 32), g(lane / 4), t(lane % 4), slot(blockIdx.z / in.kv_heads),
        head(blockIdx.z % in.kv_heads), group(in.heads / in.kv_heads), per_tile(16 * MT / group),
        first_token(blockIdx.y * per_tile), past(in.past_len[slot]), live(in.live(slot)),
        each(Partition(past + first_token + 1, gridDim.x).each),
        end(live > first_token ? past + min(first_token + per_tile, live) : 0), Q(reinterpret_cast<bf16*>(memory)), KV(Q + 16 * MT * kStride),
        scores(reinterpret_cast<float*>(KV + 4 * kKeys * kStride)) {
#pragma unroll
    for (int m = 0; m < MT; ++m) top[m][0] = top[m][1] = kMasked;
    if (!kBf16) inverse[0] = 1.0f / scale(0), inverse[1] = 1.0f / scale(1);
  }

  __device__ bf16* tile(int stage, int which) const { return KV + (stage * 2 + which) * kKeys * kStride; }
  __device__ size_t cache_row(int position) const { return in.cache_row(slot, head, position, D); }
  __device__ size_t new_row(int token) const { return in.new_row(slot, head, token, D); }
  // Row r of the tile as (token, head): the offset of its D values in o; false if there is no such row.
  __device__ bool query_row(int r, int& token, size_t& at) const {
    token = first_token + r / group;
    at = ((size_t(slot) * in.tokens + token) * in.heads + head * group + r % group) * D;
    return r < per_tile * group && token < in.tokens;
  }
  // Where the gate of the row at `at` of o is.
  __device__ const bf16* gate_of(size_t at) const { return in.gate + (Heads::kRaw ? 2 * at : at); }

  __device__ void make_queries() {
    constexpr int kAtOnce = 2;  // loads of a warp under way
    const int column = lane * kChannels;
    for (int first = warp; first < 16 * MT; first += kAtOnce * kWarps) {
      float x[kAtOnce][kChannels] = {};
      int token[kAtOnce];
      bool is[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        size_t at;
        is[i] = query_row(first + i * kWarps, token[i], at) && token[i] < live;
        if (is[i] && column < D) load(in.q + 2 * at + column, x[i]);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (is[i]) heads.turn.apply(heads.q_weight, size_t(slot) * in.tokens + token[i], D, x[i]);
        if (column < D && first + i * kWarps < 16 * MT) store(Q + (first + i * kWarps) * kStride + column, x[i]);
      }
    }
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

  // 8 new values as the cache holds them, and to the cache where `keep`; they come back as bf16.
  __device__ uint4 cached(const bf16* from, Cache* to, bool keep, float inverse) const {
    if constexpr (kBf16) {
      const uint4 word = *reinterpret_cast<const uint4*>(from);
      if (keep) *reinterpret_cast<uint4*>(to) = word;
      return word;
    } else {
      const uint2 word = {four_codes(from, inverse), four_codes(from + 4, inverse)};
      if (keep) *reinterpret_cast<uint2*>(to) = word;
      uint4 wide;
      e4m3_to_bf16(word.x, wide.x, wide.y), e4m3_to_bf16(word.y, wide.z, wide.w);
      return wide;
    }
  }

  // The new keys among [32 index, + 32), made by a warp each, to a stage; and those of the tile's own tokens to the cache,
  // with their values. Where two parts take the same keys, both write the same.
  __device__ void make_keys(int index, int stage) const {
    const int column = lane * kChannels, stop = min((index + 1) * kKeys, end);
    for (int position = max(index * kKeys, past) + warp; position < stop; position += kWarps) {
      const int token = position - past;
      const bool keep = token >= first_token;
      const size_t from = new_row(token) + column, to = cache_row(position) + column;
      float x[kChannels] = {};
      if (column < D) load(in.k + from, x);
      heads.turn.apply(heads.k_weight, size_t(slot) * in.tokens + token, D, x);
      if (column >= D) continue;
      Pack<bf16, kChannels> key;
      store(key.at, x);
      *reinterpret_cast<uint4*>(tile(stage, 0) + (position - index * kKeys) * kStride + column) =
          cached(key.at, in.k_cache + to, keep, inverse[0]);
      if (keep) cached(in.v + from, in.v_cache + to, keep, inverse[1]);
    }
  }

  // Keys [32 index, + 32) to a stage; zeros from `end` on.
  __device__ void fetch(int index, int stage) {
    constexpr int kRowsAtOnce = 32 * kWarps / (D / kVector);
    static_assert(kKeys % kRowsAtOnce == 0, "a thread copies as many pieces as the others");
    const int row = threadIdx.x / (D / kVector), column = threadIdx.x % (D / kVector) * kVector;
    const int first = index * kKeys, last = first + kKeys - 1;
    if (last < end && (first >= past || (last < past && (!in.page_table || in.page_size % kKeys == 0)))) {
      // Rows at one distance: addresses are sums.
      const bool old = first < past;
      const size_t from = (old ? cache_row(first + row) : new_row(first + row - past)) + column;
      const size_t apart = old ? D : size_t(in.kv_heads) * D;
#pragma unroll
      for (int r = 0; r < kKeys; r += kRowsAtOnce)
        fetch_piece(stage, row + r, column, from + r * apart, old, true);
    } else {
#pragma unroll 1
      for (int r = row; r < row + kKeys; r += kRowsAtOnce) {
        const int position = min(first + r, end - 1);
        const bool old = position < past;
        const size_t from = (old ? cache_row(position) : new_row(position - past)) + column;
        fetch_piece(stage, r, column, from, old, first + r < end);
      }
    }
    commit_copies();
    if constexpr (Heads::kRaw) make_keys(index, stage);
  }
  // 16 bytes of a row of K and of V: of the caches at `from`, or of k and v if not `old`.
  __device__ __forceinline__ void fetch_piece(int stage, int row, int column, size_t from, bool old, bool is) const {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      if (Heads::kRaw && !which && is && !old) continue;  // make_keys
      const Cache* cache = which ? in.v_cache : in.k_cache;
      const bf16* fresh = which ? in.v : in.k;
      bf16* to = tile(stage, which) + row * kStride + column;
      if constexpr (kBf16) {
        copy_async(to, old ? cache + from : fresh + from, is);
      } else {
        uint4 word = make_uint4(0, 0, 0, 0);
        if (is) word = old ? *reinterpret_cast<const uint4*>(cache + from) : quantize(fresh + from, inverse[which]);
        uint4 low, high;
        e4m3_to_bf16(word.x, low.x, low.y), e4m3_to_bf16(word.y, low.z, low.w);
        e4m3_to_bf16(word.z, high.x, high.y), e4m3_to_bf16(word.w, high.z, high.w);
        *reinterpret_cast<uint4*>(to) = low;
        *reinterpret_cast<uint4*>(to + 8) = high;
      }
    }
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
      if (token < live) load(gate_of(at) + (to - at), gate);
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

  // How many of the splits have keys; the first of an idle tile, which has none, counts as well.
  __device__ int parts() const { return max(1, min((tiles_of(end) + each - 1) / each, int(gridDim.x))); }

  // False if other blocks have all the keys.
  __device__ bool run() {
    const int most = Partition(end, gridDim.x).each;  // of the last token
    const int first = blockIdx.x * each, stop = min((int(blockIdx.x) + 1) * most, tiles_of(end));
    if (!Heads::kRaw && blockIdx.x == 0) append();
    if (gridDim.x > 1 && first >= stop) return blockIdx.x == 0;
    if constexpr (Heads::kRaw) {
      if (first < stop) fetch(first, 0);
      make_queries();
    } else {
      load_queries();
      if (first < stop) fetch(first, 0);
    }
    const float factor = rsqrtf(float(D)) * kLog2e * scale(0);
    for (int index = first; index < stop; ++index) {
      const int stage = (index - first) % 2;
      wait_copies<0>();
      __syncthreads();
      if (index + 1 < stop) fetch(index + 1, 1 - stage);
      score(tile(stage, 0));
      __syncthreads();
      accumulate(tile(stage, 1), index * kKeys, factor);
    }
    finish();
    return true;
  }
};

// Blocks per multiprocessor that the compiler must leave room for; 0: it chooses. Left to itself it would squeeze some of
// these kernels into the registers of one block more on some targets, by spilling.
template <int D, int MT, class Cache>
constexpr int kResident = D > 128              ? (MT == 3 ? 0 : 4)
                          : D == 128           ? (MT == 3 ? 3 : 5)
                          : sizeof(Cache) != 1 ? 0
                                               : (MT == 3 ? 4 : 7);

}  // namespace
