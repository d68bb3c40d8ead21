// y = x W^T for few tokens, W stored as the checkpoint stores it: [N, K] E4M3 and a scale per 128 x 128 block.
// Grid (ceil(M / (8 MT)), ceil(N / (16 row_groups))): blocks that read the same weights are neighbours.
#include "decode.cuh"

#define LINEAR_KERNEL(Act, suffix, tiles, resident)                                                               \
  extern "C" __global__ void __launch_bounds__(256, resident) fp8_block_linear_decode_##suffix##_m##tiles(        \
      const Act* x, const uint8_t* weight, const void* scale, int bf16_scales, Act* y, int M, int N, int K,       \
      int row_groups) {                                                                                           \
    SHARED_MEMORY(memory);                                                                                        \
    const BlockFp8 W = {weight, {scale, bf16_scales}, N, K};                                                      \
    run<false, tiles>(Linear<Act, BlockFp8>{x, W, y, M, row_groups}, W, blockIdx.y, reinterpret_cast<float*>(memory)); \
  }                                                                                                               \
  extern "C" __global__ void __launch_bounds__(256, resident) fp8_block_linear_gate_up_##suffix##_m##tiles(       \
      const Act* x, const uint8_t* gate, const void* gate_scale, const uint8_t* up, const void* up_scale,         \
      int bf16_scales, Act* y, int M, int N, int K, int row_groups) {                                             \
    SHARED_MEMORY(memory);                                                                                        \
    const BlockFp8 W = {gate, {gate_scale, bf16_scales}, N, K}, U = {up, {up_scale, bf16_scales}, N, K};          \
    run<true, tiles>(Linear<Act, BlockFp8>{x, W, y, M, row_groups}, U, blockIdx.y, reinterpret_cast<float*>(memory)); \
  }                                                                                                               \
  EXPORT_KERNEL(fp8_block_linear_decode_##suffix##_m##tiles)                                                      \
  EXPORT_KERNEL(fp8_block_linear_gate_up_##suffix##_m##tiles)

#define LINEAR_KERNELS(tiles, resident)    \
  LINEAR_KERNEL(float, f32, tiles, 1)      \
  LINEAR_KERNEL(bf16, bf16, tiles, resident)

LINEAR_KERNELS(1, 2)
LINEAR_KERNELS(2, 2)
LINEAR_KERNELS(4, 1)
