// C += A B for E4M3 operands, mma m16n8k32: a register holds 4 values where the bf16 product has 2.
//
// Before sm_89, and on the host, as two bf16 products: a lane's four values of A and of B are the same four positions
// of K, so which of them a product takes is free. On sm_90 and sm_100 the assembler makes two f16 products of it, and
// the conversions take registers; only wgmma and tcgen05 multiply E4M3 there.
#pragma once
#include "fp8.cuh"

#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
constexpr bool kConvertsE4m3 = true;
#else
constexpr bool kConvertsE4m3 = false;
#endif

// The same by two bf16 products.
__device__ __forceinline__ void mma_e4m3_widened(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    BfPair left[4], right[2];
    e4m3_to_bf16(a[2 * half], left[0], left[2]);
    e4m3_to_bf16(a[2 * half + 1], left[1], left[3]);
    e4m3_to_bf16(b[half], right[0], right[1]);
    mma(c, left, right);
  }
}

__device__ __forceinline__ void mma_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_e4m3_widened(c, a, b);
#endif
}
