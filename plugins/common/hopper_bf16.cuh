// bf16 products of a warpgroup with f32 sums (sm_90a), and their host bodies. hopper.cuh has the rest.
//
// Operands in shared memory are rows of 128 bytes with the 128-byte swizzle, 64 values each. K-major (`multiply_rows`): row
// r of the operand, 64 of K; the next 16 of K are 32 bytes further on. Columns along memory (`multiply_columns`): one k, 64
// columns, of which the next 64 are `leading` bytes further on; the next 16 of K are 2048 bytes further on.
// D and A in registers are those of mma.m16n8k16, a warp having 16 rows (PTX ISA: wgmma, register fragments).
#pragma once
#include "hopper.cuh"

// `describe` for columns along memory, with the bytes from 64 columns to the next.
__device__ __forceinline__ uint64_t describe_columns(const void* operand, int leading) {
  return (describe(operand) & ~(uint64_t(0x3fff) << 16)) | uint64_t(leading >> 4) << 16;
}

#ifdef DELTART_CPU_SHIM
#include "../cpu_shim/async_bf16.hpp"

template <int N>
inline void fence_sums(float (&)[N]) {
  shim::current->fenced = true;
}
template <int N>
inline void wait_sums(float (&)[N]) {
  shim::finish_products<1>(0);
}
template <int N>
inline void hold(BfPair (&)[N][4]) {}
inline void multiply_rows(float (&d)[40], uint64_t a, uint64_t b, bool accumulate) {
  shim::issue({d, a, b, accumulate, shim::multiply_rows<10>});
}
inline void multiply_columns(float (&d)[128], const BfPair (&a)[4], uint64_t b) {
  shim::issue({d, 0, b, true, shim::multiply_fragment<32>, a});
}

#else

// Keeps what the code does with the sums before and after on its side of this place.
template <int N>
__device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// The same of left operands: from before the products' fence to behind their wait they stay where they are.
template <int N>
__device__ __forceinline__ void hold(BfPair (&a)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(a[i][j])::"memory");
}
// Before the first product after the sums, or a left operand, were touched.
template <int N>
__device__ __forceinline__ void fence_sums(float (&d)[N]) {
  pin(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Until all committed products are done.
template <int N>
__device__ __forceinline__ void wait_sums(float (&d)[N]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  pin(d);
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D20(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12), D4(i + 16)
#define D32(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12), D4(i + 16), D4(i + 20), D4(i + 24), D4(i + 28)
#define R10(t) #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"

// d [64, 80] += a [64, 16] b [80, 16]^T, or d = a b^T.
__device__ __forceinline__ void multiply_rows(float (&d)[40], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %42, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%" R10(1) ", %" R10(2) ", %" R10(3) "}, %40, %41, p, 1, 1, 0, 0;\n}"
      : D20(0), D20(20)
      : "l"(a), "l"(b), "r"(int(accumulate)));
}
// d [64, 256] += a [64, 16] b [16, 256].
__device__ __forceinline__ void multiply_columns(float (&d)[128], const BfPair (&a)[4], uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%" R10(1) ", %" R10(2) ", %" R10(3) ", %" R10(4) ", %" R10(5) ", %" R10(6) ", %" R10(7) ", %" R10(8) ", %" R10(9) ", "
      "%" R10(10) ", %" R10(11) ", %120, %121, %122, %123, %124, %125, %126, %127}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}"
      : D32(0), D32(32), D32(64), D32(96)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef R10
#undef D32
#undef D20
#undef D4

#endif
