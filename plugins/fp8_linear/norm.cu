// y = x W^T for few tokens as in decode.cu, and behind it, by the block that is done last, sum = h + y and
// normed = (1 + norm) * sum / rms(sum) of every token: a launch less between two layers.
//
// A row's norm is that of residual_rms_norm to the bit: the same code on the same number of threads.
#include "../common/last_block.cuh"
#include "../residual_rms_norm/norm.cuh"
#include "decode.cuh"

#define LINEAR_NORM_KERNEL(Act, suffix, resident)                                                                  \
  extern "C" __global__ void __launch_bounds__(kNormThreads, resident) fp8_block_linear_norm_##suffix(             \
      const Act* x, const uint8_t* weight, const void* scale, int bf16_scales, Act* y, int M, int N, int K,        \
      int row_groups, const Act* h, const void* norm, int bf16_norm, Act* normed, Act* sum, float epsilon,         \
      int* arrived) {                                                                                              \
    SHARED_MEMORY(memory);                                                                                         \
    float* floats = reinterpret_cast<float*>(memory);                                                              \
    const BlockFp8 W = {weight, {scale, bf16_scales}, N, K};                                                       \
    run<false, 1>(Linear<Act, BlockFp8>{x, W, y, M, row_groups}, W, blockIdx.y, floats);                           \
    prefetch_all(h, size_t(M) * N * sizeof(Act)), prefetch_all(norm, size_t(N) * (bf16_norm ? 2 : 4));             \
    if (!is_last(arrived, gridDim.x * gridDim.y, floats)) return;                                                  \
    for (int row = 0; row < M; ++row) {                                                                            \
      norm_row<true>(Norm<Act>{y, h, {norm, bf16_norm}, normed, sum, N, epsilon}, row, floats);                    \
      __syncthreads();                                                                                             \
    }                                                                                                              \
  }                                                                                                                \
  EXPORT_KERNEL(fp8_block_linear_norm_##suffix)

LINEAR_NORM_KERNEL(float, f32, 2)
LINEAR_NORM_KERNEL(bf16, bf16, 3)
