// y = weight * x / rms(x) * silu(z) over heads of D channels, one warp per head. README.md has the contract.
#include "norm.cuh"

#define NORM_KERNEL(Act, suffix)                                                                                  \
  extern "C" __global__ void __launch_bounds__(128) gated_rms_norm_##suffix(                                      \
      const Act* x, const void* weight, int bf16_weight, const Act* z, Act* y, int rows, int D, float epsilon) {  \
    begin_dependent();                                                                                            \
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;                                            \
    const size_t base = size_t(row) * D;                                                                          \
    if (row >= rows) return;                                                                                      \
    const GatedNorm<Act> head{x + base, z + base, {weight, bf16_weight}, y + base, D, epsilon};                   \
    if (D <= 128)                                                                                                 \
      norm_head<1>(head);                                                                                         \
    else                                                                                                          \
      norm_head<4>(head);                                                                                         \
  }                                                                                                               \
  EXPORT_KERNEL(gated_rms_norm_##suffix)

NORM_KERNEL(float, f32)
NORM_KERNEL(bf16, bf16)
