// Gated delta rule for T <= 8 tokens. README.md has the math, decode.cuh how a warp goes about it.
#include "decode.cuh"

#define DECODE_KERNEL(Act, W, suffix)                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 4) gated_delta_rule_decode_##suffix##_w##W(                  \
      const Act* qkv, const Act* a, const Act* b, const void* A_log, const void* dt_bias, int bf16_A_log,        \
      int bf16_dt_bias, float* S, const int* n_tokens, const int* n_commit, Act* o, int tokens, int key_heads,   \
      int value_heads, int value_dim) {                                                                          \
    begin_dependent();                                                                                           \
    SHARED_MEMORY(memory);                                                                                       \
    const Inputs<Act> in = {qkv, a, b, {A_log, bf16_A_log}, {dt_bias, bf16_dt_bias}, S, n_tokens, n_commit,      \
                            tokens, key_heads, value_heads, value_dim};                                          \
    const Head<W, Act> at(in);                                                                                   \
    Shared<Act> shared(memory, tokens, at.columns);                                                              \
    run(in, at, shared, first_output(in, at, o), value_heads * value_dim);                                       \
  }                                                                                                              \
  EXPORT_KERNEL(gated_delta_rule_decode_##suffix##_w##W)

DECODE_KERNEL(float, 8, f32)
DECODE_KERNEL(float, 16, f32)
DECODE_KERNEL(bf16, 8, bf16)
DECODE_KERNEL(bf16, 16, bf16)
