// Attention of many tokens on sm_90a, heads of 256 over a bf16 cache, by warpgroup products. README.md.
//
// A block owns 128 query rows (token, head of the group) of one KV head of one slot and takes 80 keys at a time. A
// warpgroup keeps them on their way: K and V of a tile are two steps through a ring of four stages, cp.async in 16-byte
// pieces that make the swizzle. Two warpgroups multiply, 64 rows each, scores, probabilities and sums in registers: while
// one takes its softmax step, the other one's products run. Grid (row tiles, the longest first; slots * kv heads).
#include "../common/hopper_bf16.cuh"
#include "../common/warpgroups.cuh"
#include "attention.cuh"

#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace {

constexpr int kHead = 256, kRows = 128, kTileKeys = 80, kRing = 4, kLag = 2;  // kLag: steps that may still be on their way
constexpr int kChunk = 64, kChunks = kHead / kChunk, kRowBytes = 2 * kChunk;  // of a head, to a row of an operand
constexpr int kSteps = kTileKeys / 16;

struct Memory {
  unsigned char q[kChunks][kRows * kRowBytes], kv[kRing][kChunks][kTileKeys * kRowBytes];
  Barrier full[kRing], empty[kRing];
};
static_assert(kTileKeys * kRowBytes % kAtom == 0, "operands start at a swizzle atom");

// A block's rows, and the keys that they see.
struct Rows {
  const Attention<bf16>& in;
  int slot, head, group, first, past, live, end;

  __device__ Rows(const Attention<bf16>& in)
      : in(in), slot(blockIdx.y / in.kv_heads), head(blockIdx.y % in.kv_heads), group(in.heads / in.kv_heads),
        first((gridDim.x - 1 - blockIdx.x) * kRows), past(in.past_len[slot]), live(in.live(slot)),
        end(first / group < live ? past + min((first + kRows - 1) / group, live - 1) + 1 : 0) {}
  __device__ int tiles() const { return (end + kTileKeys - 1) / kTileKeys; }
  // Row r as a token, and where its D values in q, gate and o are; false if there is no such row.
  __device__ bool row(int r, int& token, size_t& at) const {
    token = (first + r) / group;
    at = ((size_t(slot) * in.tokens + token) * in.heads + head * group + (first + r) % group) * kHead;
    return token < in.tokens;
  }
};

struct Producer {
  const Rows& rows;
  Memory& memory;
  int warp, lane;  // a warp copies a row, a lane 16 bytes of it

  // The new keys and values of the tokens whose first row is the block's.
  __device__ void append() const {
    const Attention<bf16>& in = rows.in;
    const int from = (rows.first + rows.group - 1) / rows.group, to = (rows.first + kRows + rows.group - 1) / rows.group;
    for (int token = from + warp; token < min(to, rows.live); token += kGroup / 32) {
      const size_t old = in.new_row(rows.slot, rows.head, token, kHead) + lane * 8;
      const size_t row = in.cache_row(rows.slot, rows.head, rows.past + token, kHead) + lane * 8;
      *reinterpret_cast<uint4*>(in.k_cache + row) = *reinterpret_cast<const uint4*>(in.k + old);
      *reinterpret_cast<uint4*>(in.v_cache + row) = *reinterpret_cast<const uint4*>(in.v + old);
    }
  }

  __device__ void fetch_queries() const {
    for (int r = warp; r < kRows; r += kGroup / 32) {
      int token;
      size_t at;
      const bool is = rows.row(r, token, at) && token < rows.live;
      copy_async(memory.q[lane / 8] + swizzled(r, lane % 8), rows.in.q + (is ? at + lane * 8 : 0), is);
    }
  }

  // The keys of tile step / 2, or their values; zeros from `end` on.
  __device__ void fetch(int step) const {
    const Attention<bf16>& in = rows.in;
    const bf16 *cache = step % 2 ? in.v_cache : in.k_cache, *fresh = step % 2 ? in.v : in.k;
    const int first = step / 2 * kTileKeys, last = first + kTileKeys - 1;
    if (last < rows.end && (first >= rows.past || (last < rows.past && !in.page_table))) {  // rows at one distance
      const size_t apart = first >= rows.past ? in.kv_heads * kHead : kHead;
      const bf16* from = (first >= rows.past ? fresh + in.new_row(rows.slot, rows.head, first - rows.past, kHead)
                                             : cache + in.cache_row(rows.slot, rows.head, first, kHead)) +
                         warp * apart + lane * 8;
      unsigned char* to = memory.kv[step % kRing][lane / 8];
      const int upper = swizzled(warp, lane % 8), lower = swizzled(warp + 4, lane % 8);  // of eight rows
#pragma unroll
      for (int r = 0; r < kTileKeys; r += 8, from += 8 * apart) {
        copy_async(to + r * kRowBytes + upper, from, true);
        copy_async(to + r * kRowBytes + lower, from + 4 * apart, true);
      }
      return;
    }
#pragma unroll 1
    for (int r = warp; r < kTileKeys; r += kGroup / 32) {
      const int position = min(first + r, rows.end - 1);
      const bool is = first + r < rows.end;
      const bf16* from = position < rows.past ? cache + in.cache_row(rows.slot, rows.head, position, kHead)
                                              : fresh + in.new_row(rows.slot, rows.head, position - rows.past, kHead);
      copy_async(memory.kv[step % kRing][lane / 8] + swizzled(r, lane % 8), from + lane * 8, is);
    }
  }

  __device__ void publish(int step) const {
    fence_async();
    arrive(&memory.full[step % kRing]);
  }

  __device__ void run() const {
    append();
    const int steps = 2 * rows.tiles();
    for (int step = 0; step < steps; ++step) {
      wait(&memory.empty[step % kRing], step / kRing % 2 ^ 1);
      if (step == 0) fetch_queries();
      fetch(step);
      commit_copies();
      wait_copies<kLag>();
      if (step >= kLag) publish(step - kLag);
    }
    wait_copies<0>();
    for (int late = max(steps - kLag, 0); late < steps; ++late) publish(late);
  }
};

struct Multiplier {
  const Rows& rows;
  Memory& memory;
  int group, lane, row;  // row: the first of this thread's two, 8 apart
  int seen[2], least;    // keys that they see, and the fewest of the warp's rows
  float sum[2 * kHead / 4], top[2] = {kMasked, kMasked}, total[2] = {};

  __device__ Multiplier(const Rows& rows, Memory& memory, int group)
      : rows(rows), memory(memory), group(group), lane(threadIdx.x % 32),
        row(group * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int token;
      size_t at;
      seen[half] = rows.row(row + 8 * half, token, at) && token < rows.live ? rows.past + token + 1 : 0;
    }
    least = min(seen[0], seen[1]);
#pragma unroll
    for (int mask = 16; mask > 2; mask /= 2) least = min(least, __shfl_xor_sync(kFullWarp, least, mask));
#pragma unroll
    for (int i = 0; i < 2 * kHead / 4; ++i) sum[i] = 0.0f;
  }

  __device__ __forceinline__ const unsigned char* await(int step) const {
    wait(&memory.full[step % kRing], step / kRing % 2);
    return memory.kv[step % kRing][0];
  }
  __device__ __forceinline__ void release(int step) const {
    __syncwarp();
    if (lane == 0) arrive(&memory.empty[step % kRing]);
  }

  // Scores of a tile to probabilities, as left operands; rescales the sums so far.
  __device__ __forceinline__ void soften(float (&score)[kTileKeys / 2], int first, float factor, BfPair (&p)[kSteps][4]) {
    if (first + kTileKeys > least) {
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i)
        if (first + i / 4 * 8 + lane % 4 * 2 + i % 2 >= seen[i % 4 / 2]) score[i] = kMasked;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = top[half];
#pragma unroll
      for (int i = 2 * half; i < kTileKeys / 2; i += 4) most = fmaxf(most, fmaxf(score[i], score[i + 1]));
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
      const float base = most == kMasked ? 0.0f : most * factor, old = power_of_two(fmaf(top[half], factor, -base));
      top[half] = most;
      float added = 0.0f;
#pragma unroll
      for (int i = 2 * half; i < kTileKeys / 2; i += 4)
#pragma unroll
        for (int j = i; j < i + 2; ++j) score[j] = power_of_two(fmaf(score[j], factor, -base)), added += score[j];
      total[half] = fmaf(total[half], old, added);
#pragma unroll
      for (int i = 2 * half; i < 2 * kHead / 4; i += 4) sum[i] *= old, sum[i + 1] *= old;
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) p[s][i] = pair(score[8 * s + 2 * i], score[8 * s + 2 * i + 1]);
  }

  __device__ __forceinline__ void take(int tile, float factor) {
    float score[kTileKeys / 2];
    const unsigned char* keys = await(2 * tile);
    const uint64_t q = describe(memory.q[0] + group * 64 * kRowBytes), k = describe(keys);
    fence_sums(score);
#pragma unroll
    for (int d = 0; d < kHead / 16; ++d)
      multiply_rows(score, q + (d / 4 * kRows * kRowBytes + d % 4 * 32) / 16,
                    k + (d / 4 * kTileKeys * kRowBytes + d % 4 * 32) / 16, d > 0);
    commit_products();
    wait_sums(score);
    release(2 * tile);
    BfPair p[kSteps][4];
    soften(score, tile * kTileKeys, factor, p);
    const uint64_t v = describe_columns(await(2 * tile + 1), kTileKeys * kRowBytes);
    hold(p);
    fence_sums(sum);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) multiply_columns(sum, p[s], v + s * 16 * kRowBytes / 16);
    commit_products();
    wait_sums(sum);
    hold(p);
    release(2 * tile + 1);
  }

  // Column c of 128 of row r in the room of the warp's own queries, which nobody reads any more.
  __device__ float* staged(int r, int c) const {
    return reinterpret_cast<float*>(memory.q[c / 32] + swizzled(r, c % 32 / 4)) + c % 4;
  }

  // o through shared memory, half of the columns at a time, so that gates and o move in whole sectors.
  __device__ void write() {
    float by[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] += __shfl_xor_sync(kFullWarp, total[half], 1);
      total[half] += __shfl_xor_sync(kFullWarp, total[half], 2);
      by[half] = seen[half] ? 1.0f / total[half] : 0.0f;
    }
    const int first = row - lane / 4;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 16; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = (side * 16 + n) * 4 + 2 * half;
          *reinterpret_cast<float2*>(staged(row + 8 * half, n * 8 + lane % 4 * 2)) =
              make_float2(sum[i] * by[half], sum[i + 1] * by[half]);
        }
      __syncwarp();
      for (int r = first + lane / 16; r < first + 16; r += 2) {
        int token;
        size_t at;
        if (!rows.row(r, token, at)) continue;
        const int c = lane % 16 * 8;
        float x[8], gate[8];
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
          const float4 four = *reinterpret_cast<const float4*>(staged(r, c + i));
          x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        }
        if (token < rows.live) {
          load(rows.in.gate + at + side * 128 + c, gate);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] *= sigmoid(gate[i]);
        }
        store(rows.in.o + at + side * 128 + c, x);
      }
    }
  }

  __device__ void run() {
    const float factor = rsqrtf(float(kHead)) * kLog2e;
    for (int tile = 0; tile < rows.tiles(); ++tile) take(tile, factor);
    write();
  }
};

__device__ void run(const Attention<bf16>& in, Memory& memory) {
  init_ring(memory.full, memory.empty, kGroup);
  const Rows rows(in);
  deal_out([&](int thread) { Producer{rows, memory, thread / 32, thread % 32}.run(); },
           [&](int group) { Multiplier(rows, memory, group).run(); });
}

}  // namespace

#endif

extern "C" __global__ void __launch_bounds__(384, 1) gated_attention_prefill_wgmma(
    const bf16* q, const bf16* k, const bf16* v, const bf16* gate, bf16* k_cache, bf16* v_cache, const int* page_table,
    const int* past_len, const int* n_tokens, bf16* o, int tokens, int heads, int kv_heads, int page_size, int max_pages) {
  begin_dependent();
#if defined(DELTART_CPU_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  SHARED_MEMORY(memory);
  const Attention<bf16> in = {q, k, v, gate, k_cache, v_cache, page_table, nullptr, nullptr, past_len, n_tokens,
                              o, nullptr, tokens, heads, kv_heads, page_size, max_pages};
  run(in, *reinterpret_cast<Memory*>(memory));
#else
  __trap();
#endif
}
EXPORT_KERNEL(gated_attention_prefill_wgmma)
