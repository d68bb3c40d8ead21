// A row of sum = h + x, y = (1 + weight) * sum / rms(sum), by one block: on its own, or behind the linear that makes x.
//
// A thread keeps its part of the row in registers between the sum of squares and the product.
#pragma once
#include "../common/fresh.cuh"
#include "../common/warp.cuh"

namespace {

constexpr int kVector = 8, kNormThreads = 256, kMostVectors = 4;  // D up to 8192

template <class Act>
struct Norm {
  const Act* x;      // [rows, D]; null where nothing is added, and no sum is written
  const Act* h;      // [rows, D]
  Parameter weight;  // [D]
  Act *y, *sum;      // [rows, D]; sum may be h
  int D;
  float epsilon;
};

// A vector as it is stored, zeros where it is not there.
template <class Act>
struct Raw {
  static constexpr int kPieces = kVector * sizeof(Act) / 16;
  uint4 at[kPieces];

  template <bool Fresh>
  __device__ __forceinline__ void get(const Act* from, bool is) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint4* piece = reinterpret_cast<const uint4*>(from) + i;
      at[i] = make_uint4(0, 0, 0, 0);
      if (is) at[i] = Fresh ? fresh(piece) : *piece;
    }
  }
  __device__ __forceinline__ const Act* values() const { return reinterpret_cast<const Act*>(at); }
  __device__ __forceinline__ void set(const float (&to)[kVector]) {
#ifndef DELTART_CPU_SHIM
    if constexpr (sizeof(Act) == 2) {  // two a conversion: one by one they take the special unit, and are put together
#pragma unroll
      for (int i = 0; i < kVector / 2; ++i)
        reinterpret_cast<__nv_bfloat162*>(at)[i] = __floats2bfloat162_rn(to[2 * i], to[2 * i + 1]);
      return;
    }
#endif
    store(reinterpret_cast<Act*>(at), to);
  }
  __device__ __forceinline__ void put(Act* to) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) reinterpret_cast<uint4*>(to)[i] = at[i];
  }
};

// Row `row`, by a block of `Threads`; `sums` holds a float for each warp of kNormThreads. Where there are fewer, each does
// what several would have done: sums are taken in the same order whatever their number.
template <bool Fresh, int Threads = kNormThreads, class Act>
__device__ void norm_row(const Norm<Act>& in, int row, float* sums) {
  constexpr int kParts = kNormThreads / Threads;
  const size_t base = size_t(row) * in.D;
  Raw<Act> raw_h[kParts][kMostVectors], raw_x[kParts][kMostVectors];
#pragma unroll
  for (int part = 0; part < kParts; ++part)  // nothing between the loads: they are on their way together
#pragma unroll
    for (int i = 0; i < kMostVectors; ++i) {
      const int at = (i * kNormThreads + part * Threads + threadIdx.x) * kVector;
      raw_h[part][i].template get<false>(in.h + base + at, at < in.D);
      raw_x[part][i].template get<Fresh>(in.x + base + at, in.x && at < in.D);
    }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int thread = part * Threads + threadIdx.x;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kMostVectors; ++i) {
      const int at = (i * kNormThreads + thread) * kVector;
      if (at >= in.D) continue;
      float mine[kVector];
      load(raw_h[part][i].values(), mine);
      if (in.x) {
        float x[kVector];
        load(raw_x[part][i].values(), x);
#pragma unroll
        for (int j = 0; j < kVector; ++j) mine[j] += x[j];
        raw_h[part][i].set(mine);  // rounded, as its readers see it; as it is stored it takes half of the registers
        raw_h[part][i].put(in.sum + base + at);
        load(raw_h[part][i].values(), mine);
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum = fmaf(mine[j], mine[j], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[thread / 32] = sum;
  }
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < kNormThreads / 32; ++warp) total += sums[warp];
  const float scale = rsqrtf(total / in.D + in.epsilon);
#pragma unroll
  for (int part = 0; part < kParts; ++part)
#pragma unroll
    for (int i = 0; i < kMostVectors; ++i) {
      const int at = (i * kNormThreads + part * Threads + threadIdx.x) * kVector;
      if (at >= in.D) continue;
      float w[kVector], h[kVector];
      in.weight.get(at, w);
      load(raw_h[part][i].values(), h);
#pragma unroll
      for (int j = 0; j < kVector; ++j) h[j] *= scale * (1.0f + w[j]);
      store(in.y + base + at, h);
    }
}

}  // namespace
