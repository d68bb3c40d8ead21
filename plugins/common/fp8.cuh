// E4M3 to bf16 pairs, exact on every GPU from sm_80 on.
//
// GPUs from sm_89 on have an instruction for it, by way of f16, which takes half of the integer units' time. For the others
// a byte s eeee mmm is put at the top of a 16-bit half and its lower seven bits are shifted right by four: a bf16 that is
// 2^-120 times the value, subnormals included; the product with 2^120 is exact. The two NaN codes read as +-480 there.
#pragma once
#include "tensor_core.cuh"

#ifdef DELTART_CPU_SHIM

inline uint32_t select_bytes(uint32_t word, uint32_t selector) {
  uint32_t to = 0;
  for (int i = 0; i < 4; ++i) {
    const int from = selector >> 4 * i & 7;
    if (from < 4) to |= (word >> 8 * from & 0xff) << 8 * i;
  }
  return to;
}
inline BfPair times_2_to_120(BfPair p) { return pair(low(p) * 0x1p120f, high(p) * 0x1p120f); }
inline uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

#else

// Byte i of the result is byte (selector >> 4 i) of the word, or 0 for selectors 4 to 7.
__device__ __forceinline__ uint32_t select_bytes(uint32_t word, uint32_t selector) {
  return __byte_perm(word, 0, selector);
}
__device__ __forceinline__ BfPair times_2_to_120(BfPair p) {
  BfPair scaled;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(scaled) : "r"(p), "r"(0x7b807b80u), "r"(0x80008000u));
  return scaled;
}
__device__ __forceinline__ uint32_t float_bits(float x) { return __float_as_uint(x); }

#endif

// Bytes 0, 1 and 2, 3 of a word of E4M3 as bf16 pairs.
__device__ __forceinline__ void e4m3_to_bf16(uint32_t word, BfPair& first, BfPair& second) {
#if !defined(DELTART_CPU_SHIM) && __CUDA_ARCH__ >= 890
  asm("{\n"
      ".reg .b16 lower, upper, h0, h1, h2, h3;\n"
      ".reg .b32 halves0, halves1;\n"
      ".reg .f32 f0, f1, f2, f3;\n"
      "mov.b32 {lower, upper}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 halves0, lower;\n"
      "cvt.rn.f16x2.e4m3x2 halves1, upper;\n"
      "mov.b32 {h0, h1}, halves0;\n"
      "mov.b32 {h2, h3}, halves1;\n"
      "cvt.f32.f16 f0, h0;\n"
      "cvt.f32.f16 f1, h1;\n"
      "cvt.f32.f16 f2, h2;\n"
      "cvt.f32.f16 f3, h3;\n"
      "cvt.rn.bf16x2.f32 %0, f1, f0;\n"
      "cvt.rn.bf16x2.f32 %1, f3, f2;\n"
      "}"
      : "=r"(first), "=r"(second)
      : "r"(word));
#else
  const uint32_t a = select_bytes(word, 0x1404), b = select_bytes(word, 0x3424);
  first = times_2_to_120((a & 0x80008000u) | (a & 0x7f007f00u) >> 4);
  second = times_2_to_120((b & 0x80008000u) | (b & 0x7f007f00u) >> 4);
#endif
}

// The nearest E4M3 (ties to even); beyond 448 it is 448, and NaN stays NaN.
__device__ __forceinline__ uint8_t to_e4m3(float x) {
  const uint32_t sign = float_bits(x) >> 24 & 0x80, magnitude = float_bits(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  const float size = fminf(fabsf(x), 448.0f);
  if (size < 0x1p-6f) return sign | uint32_t(rintf(size * 512.0f));
  const uint32_t bits = float_bits(size);
  return sign | ((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - (120u << 3);
}

// Four values as E4M3, the first in the lowest byte; each as `to_e4m3`. sm_89 and later have an instruction for two: PTX
// states for `cvt.rn.satfinite.e4m3x2.f32` that it rounds to nearest, ties to even, subnormals included; that what is beyond
// 448, infinity too, becomes 448 with its sign; and that NaN becomes 0x7f whatever its sign. So the bits are the same.
__device__ __forceinline__ uint32_t to_e4m3x4(float a, float b, float c, float d) {
#if !defined(DELTART_CPU_SHIM) && __CUDA_ARCH__ >= 890
  uint32_t word;
  asm("{\n"
      ".reg .b16 lower, upper;\n"
      "cvt.rn.satfinite.e4m3x2.f32 lower, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 upper, %4, %3;\n"
      "mov.b32 %0, {lower, upper};\n"
      "}"
      : "=r"(word)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return word;
#else
  return to_e4m3(a) | uint32_t(to_e4m3(b)) << 8 | uint32_t(to_e4m3(c)) << 16 | uint32_t(to_e4m3(d)) << 24;
#endif
}
