// Attention of T new tokens over a KV cache, with the append of their K and V and the output gate. README.md; tile.cuh has
// what a block does.
#include "combine.cuh"

#define ATTENTION_KERNEL(D, MT, Cache, suffix)                                                                        \
  extern "C" __global__ void __launch_bounds__(128, (kResident<D, MT, Cache>)) gated_attention_##suffix##_d##D##_m##MT( \
      const bf16* q, const bf16* k, const bf16* v, const bf16* gate, Cache* k_cache, Cache* v_cache,                  \
      const int* page_table, const float* k_scale, const float* v_scale, const int* past_len, const int* n_tokens,    \
      bf16* o, float* partial, int tokens, int heads, int kv_heads, int page_size, int max_pages) {                   \
    begin_dependent();                                                                                                \
    SHARED_MEMORY(memory);                                                                                            \
    const Attention<Cache> in = {q, k, v, gate, k_cache, v_cache, page_table, k_scale, v_scale, past_len, n_tokens,   \
                                 o, partial, tokens, heads, kv_heads, page_size, max_pages};                          \
    Block<D, MT, Cache>(in, Made(), memory).run();                                                                    \
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
  combine(partial, gate, past_len, n_tokens, o, splits, D, D, reinterpret_cast<float*>(memory));
}
EXPORT_KERNEL(gated_attention_combine)
