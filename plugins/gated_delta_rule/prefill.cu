// Gated delta rule for any number of tokens, in chunks of C: first prefill_chunk, then prefill_scan, per segment.
#include "prefill_chunk.cuh"
#include "prefill_scan.cuh"

#define PREFILL_KERNELS(Act, suffix, C)                                                                          \
  extern "C" __global__ void __launch_bounds__(2 * C)                                                            \
      gated_delta_rule_prefill_chunk_##suffix##_c##C(PREFILL_INPUTS(Act)) {                                      \
    begin_dependent();                                                                                           \
    SHARED_MEMORY(memory);                                                                                       \
    const Prefill<Act> in PREFILL_FORWARD;                                                                       \
    ChunkKernel<Act, C>(in, memory).run();                                                                       \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      gated_delta_rule_prefill_scan_##suffix##_c##C(PREFILL_INPUTS(Act)) {                                       \
    begin_dependent();                                                                                           \
    SHARED_MEMORY(memory);                                                                                       \
    const Prefill<Act> in PREFILL_FORWARD;                                                                       \
    ScanKernel<Act, C>(in, memory).run();                                                                        \
  }                                                                                                              \
  EXPORT_KERNEL(gated_delta_rule_prefill_chunk_##suffix##_c##C)                                                  \
  EXPORT_KERNEL(gated_delta_rule_prefill_scan_##suffix##_c##C)

PREFILL_KERNELS(float, f32, 32)
PREFILL_KERNELS(bf16, bf16, 32)
PREFILL_KERNELS(bf16, bf16, 64)
#ifdef DELTART_CPU_SHIM
PREFILL_KERNELS(float, f32, 64)  // shows the 64-token algorithm to f32 accuracy; a GPU takes 32 with f32
#endif
