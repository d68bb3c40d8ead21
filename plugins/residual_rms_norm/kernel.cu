// sum = h + x, y = (1 + weight) * sum / rms(sum): the sum and the norm between two blocks, one pass. README.md.
// A block per row.
#include "norm.cuh"

#define NORM_KERNEL(Act, suffix)                                                                                  \
  extern "C" __global__ void __launch_bounds__(kNormThreads) residual_rms_norm_##suffix(                              \
      const Act* x, const Act* h, const void* weight, int bf16_weight, Act* y, Act* sum, int D, float epsilon) {  \
    begin_dependent();                                                                                            \
    SHARED_MEMORY(memory);                                                                                        \
    norm_row<false>(Norm<Act>{x, h, {weight, bf16_weight}, y, sum, D, epsilon}, blockIdx.x,                       \
                    reinterpret_cast<float*>(memory));                                                            \
  }                                                                                                               \
  EXPORT_KERNEL(residual_rms_norm_##suffix)

NORM_KERNEL(float, f32)
NORM_KERNEL(bf16, bf16)
