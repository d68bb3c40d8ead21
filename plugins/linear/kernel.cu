// y = x W^T, y = silu(x W^T) * (x U^T) with bf16 weights [N, K], and y = silu(gate) * up. README.md has the contract.
// Grid of the products: (ceil(M / (8 MT)), ceil(N / (16 row_groups))).
#include "../common/silu_mul.cuh"
#include "../fp8_linear/decode.cuh"

#define LINEAR_KERNEL(Act, suffix, tiles, resident)                                                                \
  extern "C" __global__ void __launch_bounds__(256, resident) linear_##suffix##_m##tiles(                          \
      const Act* x, const bf16* weight, Act* y, int M, int N, int K, int row_groups) {                             \
    launch_dependents();                                                                                           \
    SHARED_MEMORY(memory);                                                                                         \
    const Bf16 W = {weight, N, K};                                                                                 \
    run<false, tiles>(Linear<Act, Bf16>{x, W, y, M, row_groups}, W, blockIdx.y, reinterpret_cast<float*>(memory)); \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(256, resident) linear_gate_up_##suffix##_m##tiles(                  \
      const Act* x, const bf16* gate, const bf16* up, Act* y, int M, int N, int K, int row_groups) {               \
    launch_dependents();                                                                                           \
    SHARED_MEMORY(memory);                                                                                         \
    const Bf16 W = {gate, N, K}, U = {up, N, K};                                                                   \
    run<true, tiles>(Linear<Act, Bf16>{x, W, y, M, row_groups}, U, blockIdx.y, reinterpret_cast<float*>(memory));  \
  }                                                                                                                \
  EXPORT_KERNEL(linear_##suffix##_m##tiles)                                                                        \
  EXPORT_KERNEL(linear_gate_up_##suffix##_m##tiles)

#define LINEAR_KERNELS(tiles, resident) \
  LINEAR_KERNEL(float, f32, tiles, 1)   \
  LINEAR_KERNEL(bf16, bf16, tiles, resident)

LINEAR_KERNELS(1, 2)
LINEAR_KERNELS(2, 2)
LINEAR_KERNELS(4, 1)

#define SILU_MUL_KERNEL(Act, suffix)                                           \
  extern "C" __global__ void __launch_bounds__(256)                            \
      silu_mul_##suffix(const Act* gate, const Act* up, Act* y, long long count) { \
    begin_dependent();                                                             \
    silu_mul(gate, up, y, count);                                              \
  }                                                                            \
  EXPORT_KERNEL(silu_mul_##suffix)

SILU_MUL_KERNEL(float, f32)
SILU_MUL_KERNEL(bf16, bf16)
