// y = weight * x / rms(x) * silu(z) over heads of D channels, one warp per head. README.md has the contract.
#include "../common/vector.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kVector = 4, kMostVectors = 4;  // D up to 512

template <class Act>
struct Norm {
  const Act *x, *z;  // [rows, D]
  Parameter weight;  // [D]
  Act* y;
  int rows, D;
  float epsilon;
};

template <class Act>
__device__ void run(const Norm<Act>& in) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= in.rows) return;
  const size_t base = size_t(row) * in.D;
  float x[kMostVectors][kVector], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int at = (i * 32 + lane) * kVector;
    if (at >= in.D) continue;
    load(in.x + base + at, x[i]);
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum = fmaf(x[i][j], x[i][j], sum);
  }
  const float scale = rsqrtf(warp_sum(sum) / in.D + in.epsilon);
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int at = (i * 32 + lane) * kVector;
    if (at >= in.D) continue;
    float z[kVector], w[kVector];
    load(in.z + base + at, z);
    in.weight.get(at, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[i][j] *= scale * w[j] * z[j] * sigmoid(z[j]);
    store(in.y + base + at, x[i]);
  }
}

}  // namespace

#define NORM_KERNEL(Act, suffix)                                                                                  \
  extern "C" __global__ void __launch_bounds__(128) gated_rms_norm_##suffix(                                      \
      const Act* x, const void* weight, int bf16_weight, const Act* z, Act* y, int rows, int D, float epsilon) {  \
    begin_dependent();                                                                                            \
    run<Act>({x, z, {weight, bf16_weight}, y, rows, D, epsilon});                                                 \
  }                                                                                                               \
  EXPORT_KERNEL(gated_rms_norm_##suffix)

NORM_KERNEL(float, f32)
NORM_KERNEL(bf16, bf16)
