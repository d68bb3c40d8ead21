// The random bits of numpy's Philox generator, and 64-bit arithmetic that the host lacks a name for.
#pragma once
#include "../common/cuda.cuh"

typedef unsigned long long u64;

#ifdef DELTART_CPU_SHIM
inline u64 multiply_high(u64 a, u64 b) { return u64((unsigned __int128)a * b >> 64); }
#else
__device__ __forceinline__ u64 multiply_high(u64 a, u64 b) { return __umul64hi(a, b); }
#endif

// The first 64 random bits of Philox 4x64-10 with key (seed, 0) at counter (0, 0, 0, step), as numpy counts: it steps
// the counter before it draws.
__device__ inline u64 philox(u64 seed, u64 step) {
  u64 c[4] = {1, 0, 0, step}, key[2] = {seed, 0};
  for (int round = 0; round < 10; ++round) {
    const u64 a = 0xD2E7470EE14C6C93ull, b = 0xCA5A826395121157ull;
    const u64 next[4] = {multiply_high(b, c[2]) ^ c[1] ^ key[0], b * c[2], multiply_high(a, c[0]) ^ c[3] ^ key[1], a * c[0]};
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key[0] += 0x9E3779B97F4A7C15ull, key[1] += 0xBB67AE8584CAA73Bull;
  }
  return c[0];
}
