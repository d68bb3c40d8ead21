// sum = h + x, y = (1 + weight) * sum / rms(sum): the sum and the norm between two blocks, one pass. README.md.
//
// A block per row; a thread keeps its part of the row in registers between the sum of squares and the product.
#include "../common/vector.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kVector = 8, kThreads = 256, kMostVectors = 4;  // D up to 8192

template <class Act>
struct Norm {
  const Act* x;      // [rows, D]; null where nothing is added, and no sum is written
  const Act* h;      // [rows, D]
  Parameter weight;  // [D]
  Act *y, *sum;      // [rows, D]; sum may be h
  int D;
  float epsilon;
};

template <class Act>
__device__ void run(const Norm<Act>& in, float* sums) {
  const size_t base = size_t(blockIdx.x) * in.D;
  float h[kMostVectors][kVector], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int at = (i * kThreads + threadIdx.x) * kVector;
    if (at >= in.D) continue;
    load(in.h + base + at, h[i]);
    if (in.x) {
      float x[kVector];
      load(in.x + base + at, x);
#pragma unroll
      for (int j = 0; j < kVector; ++j) h[i][j] = to_float(from_float<Act>(h[i][j] + x[j]));  // what its readers see
      store(in.sum + base + at, h[i]);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum = fmaf(h[i][j], h[i][j], sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += sums[warp];
  const float scale = rsqrtf(total / in.D + in.epsilon);
#pragma unroll
  for (int i = 0; i < kMostVectors; ++i) {
    const int at = (i * kThreads + threadIdx.x) * kVector;
    if (at >= in.D) continue;
    float w[kVector];
    in.weight.get(at, w);
#pragma unroll
    for (int j = 0; j < kVector; ++j) h[i][j] *= scale * (1.0f + w[j]);
    store(in.y + base + at, h[i]);
  }
}

}  // namespace

#define NORM_KERNEL(Act, suffix)                                                                                  \
  extern "C" __global__ void __launch_bounds__(kThreads) residual_rms_norm_##suffix(                              \
      const Act* x, const Act* h, const void* weight, int bf16_weight, Act* y, Act* sum, int D, float epsilon) {  \
    SHARED_MEMORY(memory);                                                                                        \
    run<Act>({x, h, {weight, bf16_weight}, y, sum, D, epsilon}, reinterpret_cast<float*>(memory));                \
  }                                                                                                               \
  EXPORT_KERNEL(residual_rms_norm_##suffix)

NORM_KERNEL(float, f32)
NORM_KERNEL(bf16, bf16)
