// The gated delta rule for T <= 8 tokens as in decode.cu, and behind it the gated norm: a launch less for a layer.
#include "norm.cuh"

#define DECODE_NORM_KERNEL(Act, suffix)                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * kMostWarps, 2) gated_delta_rule_norm_##suffix(               \
      const Act* qkv, const Act* a, const Act* b, const void* A_log, const void* dt_bias, int bf16_A_log,        \
      int bf16_dt_bias, float* S, const int* n_tokens, const int* n_commit, const Act* z, const void* weight,    \
      int bf16_weight, Act* y, int tokens, int key_heads, int value_heads, int value_dim, float epsilon) {       \
    begin_dependent();                                                                                           \
    SHARED_MEMORY(memory);                                                                                       \
    const Inputs<Act> in = {a, b, {A_log, bf16_A_log}, {dt_bias, bf16_dt_bias}, S, n_tokens, n_commit, tokens,   \
                            key_heads, value_heads, value_dim};                                                  \
    const Head<kColumns, Act> at(in);                                                                            \
    Stored<Act> source{qkv};                                                                                     \
    run_normed(in, source, Norm<Act>{z, {weight, bf16_weight}, y, epsilon}, at, memory);                         \
  }                                                                                                              \
  EXPORT_KERNEL(gated_delta_rule_norm_##suffix)

DECODE_NORM_KERNEL(float, f32)
DECODE_NORM_KERNEL(bf16, bf16)
