// Symmetric int4 in groups along K, as compressed-tensors packs it: a nibble is the value plus 8, eight to a word, the
// first lowest; 16 consecutive bytes of a row are 32 values, one `piece`. A scale, f32, bf16 or f16, serves a whole number
// of pieces, or several share one.
//
// ldmatrix deals a piece's four words to the four lanes of a row, so a product of two steps sums values of one scale.
#pragma once
#include "tensor_core.cuh"

constexpr int kPiece = 32;  // values

#ifdef DELTART_CPU_SHIM
inline BfPair less_136(BfPair p) { return pair(low(p) - 136.0f, high(p) - 136.0f); }
inline uint32_t masked_or(uint32_t word, uint32_t mask, uint32_t bits) { return (word & mask) | bits; }
inline BfPair low_halves(BfPair a, BfPair b) { return (a & 0xffffu) | b << 16; }
inline BfPair high_halves(BfPair a, BfPair b) { return a >> 16 | (b & 0xffff0000u); }
inline float f16_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                                    : ldexpf(exponent ? 1024 + fraction : fraction, exponent ? exponent - 25 : -24);
  return bits >> 15 ? -size : size;
}
#else
// (word & mask) | bits in one instruction: of two constants the compiler would make two.
__device__ __forceinline__ uint32_t masked_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t to;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(to) : "r"(word), "r"(mask), "r"(bits));
  return to;
}
__device__ __forceinline__ BfPair low_halves(BfPair a, BfPair b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ BfPair high_halves(BfPair a, BfPair b) { return __byte_perm(a, b, 0x7632); }
__device__ __forceinline__ BfPair less_136(BfPair p) {
  BfPair less;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(less) : "r"(p), "r"(0x3f803f80u), "r"(0xc308c308u));
  return less;
}
__device__ __forceinline__ float f16_to_float(uint16_t bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}
#endif

// Values i and i + 4 of a word. Under the exponent of 128 a nibble is 128 more than it says, which bf16 holds.
__device__ __forceinline__ BfPair int4_to_bf16(uint32_t word, int i) {
  return less_136(masked_or(word >> 4 * i, 0x000f000fu, 0x43004300u));
}

// Eight consecutive activations, four to a step, in the order of these pairs: 0 and 4, 1 and 5; 2 and 6, 3 and 7.
__device__ __forceinline__ void interleave(BfPair (&first)[2], BfPair (&second)[2]) {
  const BfPair a = first[0], b = first[1], c = second[0], d = second[1];
  first[0] = low_halves(a, c), first[1] = high_halves(a, c);
  second[0] = low_halves(b, d), second[1] = high_halves(b, d);
}

enum ScaleType { kF32Scales, kBf16Scales, kF16Scales };  // as launches number them

__device__ __forceinline__ int scale_bytes(int type) { return type == kF32Scales ? 4 : 2; }

// A scale at `from`.
template <int Type>
__device__ __forceinline__ float scale_at(const unsigned char* from) {
  if constexpr (Type == kBf16Scales)
    return to_float(*reinterpret_cast<const bf16*>(from));
  else if constexpr (Type == kF16Scales)
    return f16_to_float(*reinterpret_cast<const uint16_t*>(from));
  else
    return *reinterpret_cast<const float*>(from);
}

// Scales [N, groups] on their way to shared memory: of some pieces of a row, as words that cover them.
struct GroupScales {
  const unsigned char* data;
  int type, groups, shift;  // 32 << shift values share a scale

  // The scales of one row.
  struct Row {
    const unsigned char* data;
    int bytes, groups, shift;

    // How far behind a word's begin the scale of `piece` lies.
    __device__ __forceinline__ int within(int piece) const {
      return (int(reinterpret_cast<uintptr_t>(data)) + (piece >> shift) * bytes) & 3;
    }
    // Word `word` of the scales of `pieces` from `piece` on; zeros behind the row's last.
    __device__ __forceinline__ void copy(unsigned char* to, int piece, int pieces, int word) const {
      const int first = piece >> shift, stop = min(groups, first + max(1, pieces >> shift));
      const int at = first * bytes - within(piece) + 4 * word;
      copy_word_async(to + 4 * word, data + at, max(0, min(stop * bytes - at, 4)));
    }
  };

  __device__ __forceinline__ Row row(int n) const {
    const int bytes = scale_bytes(type);
    return {data + size_t(n) * groups * bytes, bytes, groups, shift};
  }
  __device__ __forceinline__ float at(const unsigned char* from) const {
    if (type == kBf16Scales) return scale_at<kBf16Scales>(from);
    return type == kF16Scales ? scale_at<kF16Scales>(from) : scale_at<kF32Scales>(from);
  }
  // Words that `pieces` of a row take, wherever they begin.
  __device__ __forceinline__ int words(int pieces) const {
    const int count = max(1, pieces >> shift);
    return type == kF32Scales ? count : (count * 2 + 5) / 4;
  }
};
