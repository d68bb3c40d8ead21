// What another block of the same launch may have written: read past the multiprocessor's own cache.
#pragma once
#include "vector.cuh"

#ifdef DELTART_CPU_SHIM
template <class T>
inline T fresh(const T* from) {
  return *from;
}
#else
template <class T>
__device__ __forceinline__ T fresh(const T* from) {
  return __ldcg(from);
}
#endif

// N values, a multiple of 16 bytes.
template <int N, class T>
__device__ __forceinline__ void load_fresh(const T* from, float (&to)[N]) {
  constexpr int kPieces = N * sizeof(T) / 16;
  uint4 raw[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) raw[i] = fresh(reinterpret_cast<const uint4*>(from) + i);
  load(reinterpret_cast<const T*>(raw), to);
}
