// y = x W^T for up to eight tokens as in decode.cu, and behind it, by the block that is done last, sum = h + y and
// normed = (1 + norm) * sum / rms(sum) of every token: a launch less between two layers.
//
// A row's norm is that of residual_rms_norm to the bit: the same code, whose threads each do the work of two.
#include "../common/last_block.cuh"
#include "../residual_rms_norm/norm.cuh"
#include "decode.cuh"

namespace {

constexpr int kThreads = 128;

}  // namespace

#define INT4_NORM_KERNEL(Act, suffix, resident)                                                                    \
  extern "C" __global__ void __launch_bounds__(kThreads, resident) int4_linear_norm_##suffix(                      \
      const Act* x, const unsigned char* weight, const void* scale, int scale_type, Act* y, int M, int N, int K,   \
      int groups, int shift, int row_groups, const Act* h, const void* norm, int bf16_norm, Act* normed, Act* sum, \
      float epsilon, int* arrived) {                                                                               \
    SHARED_MEMORY(memory);                                                                                         \
    float* floats = reinterpret_cast<float*>(memory);                                                              \
    const Int4Group W = {weight, {static_cast<const unsigned char*>(scale), scale_type, groups, shift}, N, K};     \
    run<false, 1>(Linear<Act, Int4Group>{x, W, y, M, row_groups}, W, blockIdx.y, floats);                          \
    prefetch_all(h, size_t(M) * N * sizeof(Act)), prefetch_all(norm, size_t(N) * (bf16_norm ? 2 : 4));             \
    if (!is_last(arrived, gridDim.x * gridDim.y, floats)) return;                                                  \
    for (int row = 0; row < M; ++row) {                                                                            \
      norm_row<true, kThreads>(Norm<Act>{y, h, {norm, bf16_norm}, normed, sum, N, epsilon}, row, floats);          \
      __syncthreads();                                                                                             \
    }                                                                                                              \
  }                                                                                                                \
  EXPORT_KERNEL(int4_linear_norm_##suffix)

INT4_NORM_KERNEL(float, f32, 1)
INT4_NORM_KERNEL(bf16, bf16, 4)
