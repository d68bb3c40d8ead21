// y = x W^T for few tokens, W in int4 as the checkpoint stores it. README.md has the contract.
// Grid (ceil(M / (8 MT)), ceil(N / (16 row_groups))): blocks that read the same weights are neighbours.
#include "decode.cuh"

#define INT4_KERNEL(Act, Out, name, suffix, tiles, resident)                                                             \
  extern "C" __global__ void __launch_bounds__(128, resident) int4_linear_##name##_##suffix##_m##tiles(                  \
      const Act* x, const unsigned char* weight, const void* scale, int scale_type, Out* y, int M, int N, int K,         \
      int groups, int shift, int row_groups) {                                                                           \
    SHARED_MEMORY(memory);                                                                                               \
    const Int4Group W = {weight, {static_cast<const unsigned char*>(scale), scale_type, groups, shift}, N, K};           \
    run<false, tiles>(Linear<Act, Int4Group, Out>{x, W, y, M, row_groups}, W, blockIdx.y, reinterpret_cast<float*>(memory)); \
  }                                                                                                                      \
  EXPORT_KERNEL(int4_linear_##name##_##suffix##_m##tiles)

#define INT4_GATE_UP_KERNEL(Act, suffix, tiles, resident)                                                              \
  extern "C" __global__ void __launch_bounds__(128, resident) int4_linear_gate_up_##suffix##_m##tiles(                 \
      const Act* x, const unsigned char* gate, const void* gate_scale, const unsigned char* up, const void* up_scale,  \
      int scale_type, Act* y, int M, int N, int K, int groups, int shift, int row_groups) {                            \
    SHARED_MEMORY(memory);                                                                                             \
    const Int4Group W = {gate, {static_cast<const unsigned char*>(gate_scale), scale_type, groups, shift}, N, K};      \
    const Int4Group U = {up, {static_cast<const unsigned char*>(up_scale), scale_type, groups, shift}, N, K};          \
    run<true, tiles>(Linear<Act, Int4Group>{x, W, y, M, row_groups}, U, blockIdx.y, reinterpret_cast<float*>(memory)); \
  }                                                                                                                    \
  EXPORT_KERNEL(int4_linear_gate_up_##suffix##_m##tiles)

#define INT4_KERNELS(tiles, resident)                            \
  INT4_KERNEL(float, float, decode, f32, tiles, 1)               \
  INT4_KERNEL(bf16, bf16, decode, bf16, tiles, resident)         \
  INT4_KERNEL(bf16, float, logits, bf16, tiles, resident)        \
  INT4_GATE_UP_KERNEL(float, f32, tiles, 1)                      \
  INT4_GATE_UP_KERNEL(bf16, bf16, tiles, resident)

INT4_KERNELS(1, 4)
INT4_KERNELS(2, 4)
INT4_KERNELS(4, 2)
