// Typed loads and stores: memory holds f32 or bf16, registers hold f32.
#pragma once
#include "cuda.cuh"

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// N consecutive values in one access. The address must be aligned to N * sizeof(T), capped at 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
  Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(pack.at[i]);
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.at[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// A parameter tensor whose storage type is known at run time (A_log, dt_bias, conv weights: bf16 or f32).
struct Parameter {
  const void* data;
  int is_bf16;
  __device__ __forceinline__ float operator[](int i) const {
    return is_bf16 ? to_float(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
  template <int N>
  __device__ __forceinline__ void get(int i, float (&to)[N]) const {
    if (is_bf16)
      load(static_cast<const bf16*>(data) + i, to);
    else
      load(static_cast<const float*>(data) + i, to);
  }
};

#ifdef DELTART_CPU_SHIM
inline float power_of_two(float x) { return exp2f(x); }
#else
// 2^x by the special unit's approximation, 0 where the result would be subnormal.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
// The same for a result that is rounded to Act: for bf16 by the special unit's approximations, four instructions in place of
// some thirty. Their error is below 2^-16 of the result where that is above 2^-126 (PTX ISA, ex2.approx and rcp.approx: 2 and
// 1 ulp; x log2(e), up to 126 in size, is rounded to 24 bits): a hundredth of half an ulp of bf16.
template <class Act>
__device__ __forceinline__ float sigmoid_for(float x) {
  return sigmoid(x);
}
#ifndef DELTART_CPU_SHIM
template <>
__device__ __forceinline__ float sigmoid_for<bf16>(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power_of_two(x * -1.44269504f)));
  return result;
}
#endif
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
