// Where the tiles' sums go: rounded into y, or, when K is split, as f32 parts that are added in order.
#pragma once
#include "../common/silu_mul.cuh"
#include "../common/vector.cuh"

struct Output {
  bf16* y;         // [M, N]
  float* partial;  // [splits, M, N], or null
  int M, N;

  // Sums of a token for an even column and the next one; nothing outside of y.
  __device__ __forceinline__ void put(int split, int token, int column, float first, float second) const {
    if (token >= M || column >= N) return;
    const size_t at = size_t(token) * N + column;
    if (partial)
      write(partial + size_t(split) * M * N + at, column, first, second);
    else
      write(y + at, column, first, second);
  }

 private:
  template <class T>
  __device__ __forceinline__ void write(T* to, int column, float first, float second) const {
    const float two[2] = {first, second};
    if (N % 2 == 0) {
      store(to, two);
    } else {
      to[0] = from_float<T>(first);
      if (column + 1 < N) to[1] = from_float<T>(second);
    }
  }
};

__device__ inline void add_splits(const float* partial, bf16* y, int splits, int size) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= size) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partial[size_t(split) * size + at];
  y[at] = from_float<bf16>(sum);
}

#define ADD_SPLITS_KERNEL(family)                                                  \
  extern "C" __global__ void __launch_bounds__(256)                                \
      family##_add_splits(const float* partial, bf16* y, int splits, int size) {   \
    begin_dependent();                                                             \
    add_splits(partial, y, splits, size);                                          \
  }                                                                                \
  EXPORT_KERNEL(family##_add_splits)

#define SILU_MUL_KERNEL(family)                                         \
  extern "C" __global__ void __launch_bounds__(256)                     \
      family##_silu_mul(const bf16* gate, bf16* y, long long count) {   \
    begin_dependent();                                                  \
    silu_mul(gate, y, y, count);                                        \
  }                                                                     \
  EXPORT_KERNEL(family##_silu_mul)
