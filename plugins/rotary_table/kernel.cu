// cos, sin = scale * cos(angle), scale * sin(angle) for each token and rotary pair. README.md has the contract.
#include "../common/vector.cuh"

namespace {

template <class Act>
__device__ void run(const long long* positions, const long long* axes, const float* inv_freq, Act* cos, Act* sin,
                    int rows, int pairs, float scale) {
  const long long at = blockIdx.x * (long long)(blockDim.x) + threadIdx.x;
  if (at >= (long long)(rows)*pairs) return;
  const int row = int(at / pairs), pair = int(at % pairs);
  const float angle = float(positions[axes[pair] * rows + row]) * inv_freq[pair];
  cos[at] = from_float<Act>(cosf(angle) * scale);
  sin[at] = from_float<Act>(sinf(angle) * scale);
}

}  // namespace

#define TABLE_KERNEL(Act, suffix)                                                                                \
  extern "C" __global__ void __launch_bounds__(128)                                                              \
      rotary_table_##suffix(const long long* positions, const long long* axes, const float* inv_freq, Act* cos,  \
                            Act* sin, int rows, int pairs, float scale) {                                        \
    begin_dependent();                                                                                           \
    run(positions, axes, inv_freq, cos, sin, rows, pairs, scale);                                                \
  }                                                                                                              \
  EXPORT_KERNEL(rotary_table_##suffix)

TABLE_KERNEL(float, f32)
TABLE_KERNEL(bf16, bf16)
