// Attention of up to 8 new tokens, from the projections on: the block normalises and turns the queries and keys that it
// needs, and where `arrived` is given the one that is done last adds the parts. Up to three launches as one. README.md.
#include "combine.cuh"
#include "last.cuh"

namespace {

template <int D, int MT, class Cache>
__device__ __forceinline__ void attend(const Attention<Cache>& in, const Raw& raw, int* arrived, unsigned char* memory) {
  Block<D, MT, Cache, Raw> block(in, raw, memory);
  const bool counts = block.run();
  if constexpr (MT == 1) {
    if (!arrived || !counts || !is_last(arrived + blockIdx.z, block.parts(), block.scores)) return;
    Last<D, Cache, Raw>(block).run();
  }
}

}  // namespace

#define ROPE_ATTENTION_KERNEL(D, MT, Cache, suffix)                                                                    \
  extern "C" __global__ void __launch_bounds__(128, 2) gated_attention_rope_##suffix##_d##D##_m##MT(                   \
      const bf16* q_gate, const bf16* k, const void* q_weight, const void* k_weight, int bf16_weight, const bf16* cos, \
      const bf16* sin, const bf16* v, Cache* k_cache, Cache* v_cache, const int* page_table, const float* k_scale,     \
      const float* v_scale, const int* past_len, const int* n_tokens, bf16* o, float* partial, int* arrived,           \
      int tokens, int heads, int kv_heads, int page_size, int max_pages, int rotary, float epsilon) {                  \
    begin_dependent();                                                                                                 \
    SHARED_MEMORY(memory);                                                                                             \
    const Attention<Cache> in = {q_gate,   k,        v,        q_gate + D, k_cache,  v_cache,   page_table, k_scale,   \
                                 v_scale,  past_len, n_tokens, o,          partial,  tokens,    heads,      kv_heads,  \
                                 page_size, max_pages};                                                                \
    const Raw raw = {{q_weight, bf16_weight}, {k_weight, bf16_weight}, {cos, sin, rotary, epsilon}};                   \
    attend<D, MT>(in, raw, arrived, memory);                                                                           \
  }                                                                                                                    \
  EXPORT_KERNEL(gated_attention_rope_##suffix##_d##D##_m##MT)

#define ROPE_ATTENTION_CACHES(D, MT)         \
  ROPE_ATTENTION_KERNEL(D, MT, bf16, bf16)   \
  ROPE_ATTENTION_KERNEL(D, MT, uint8_t, e4m3)
#define ROPE_ATTENTION_ROWS(D) \
  ROPE_ATTENTION_CACHES(D, 1)  \
  ROPE_ATTENTION_CACHES(D, 3)

ROPE_ATTENTION_ROWS(64)
ROPE_ATTENTION_ROWS(128)
ROPE_ATTENTION_ROWS(256)

extern "C" __global__ void __launch_bounds__(256) gated_attention_rope_combine(
    const float* partial, const bf16* q_gate, const int* past_len, const int* n_tokens, bf16* o, int splits, int D) {
  begin_dependent();
  SHARED_MEMORY(memory);
  combine(partial, q_gate + D, past_len, n_tokens, o, splits, D, 2 * D, reinterpret_cast<float*>(memory));
}
EXPORT_KERNEL(gated_attention_rope_combine)
