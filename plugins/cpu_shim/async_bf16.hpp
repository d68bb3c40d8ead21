// Warpgroup products of bf16 on the shim, through the bits of their descriptors; async.hpp says when they run.
#pragma once
#include "async.hpp"

namespace shim {

// A value of an operand, `at` bytes from the start of shared memory before the swizzle.
inline float bf16_at(size_t at) {
  at ^= (at >> 7 & 7) << 4;
  if (at + 2 > block.shared_bytes) fail("a descriptor beyond shared memory");
  return __bfloat162float(__nv_bfloat16{uint16_t(block.async_view[at] | block.async_view[at + 1] << 8)});
}

struct Operand {
  size_t start, leading, stride;
  explicit Operand(uint64_t bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1 || (bits >> 49 & 7)) fail("a descriptor without the 128-byte swizzle");
  }
  // K-major: eight rows of 128 bytes, then `stride` bytes on.
  float row(int row, int k) const { return bf16_at(start + row / 8 * stride + row % 8 * 128 + 2 * k); }
  // Columns along memory: 64 of them a row of 128 bytes, then `leading` bytes on; eight k, then `stride` bytes on.
  float column(int k, int column) const {
    return bf16_at(start + column / 64 * leading + k / 8 * stride + k % 8 * 128 + column % 64 * 2);
  }
};

// This thread's part of D [64, 8 Columns], as of E4M3, with 16 of K; b(k, column).
template <int Columns, class B>
inline void multiply_bf16(const Product& p, const float (&a)[2][16], B b) {
  for (int n = 0; n < Columns; ++n)
    for (int i = 0; i < 2; ++i) {
      float sum[2] = {};
      for (int k = 0; k < 16; ++k) {
        const float right = b(k, 8 * n + 2 * (current->lane % 4) + i);
        for (int half = 0; half < 2; ++half) sum[half] += a[half][k] * right;
      }
      for (int half = 0; half < 2; ++half) {
        float& d = p.d[4 * n + 2 * half + i];
        d = p.accumulate ? d + sum[half] : sum[half];
      }
    }
}

template <int Columns>
inline void multiply_rows(const Product& p) {
  const Operand left(p.a), right(p.b);
  const int row = int(current->thread.x) / kWarp % 4 * 16 + current->lane / 4;
  float a[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) a[half][k] = left.row(row + 8 * half, k);
  multiply_bf16<Columns>(p, a, [&](int k, int column) { return right.row(column, k); });
}

// A in registers: of each lane four pairs, read when the product runs.
template <int Columns>
inline void multiply_fragment(const Product& p) {
  const Operand right(p.b);
  const auto warp = exchange(p, "wgmma");
  float a[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) {
      const uint32_t two = warp.lane(current->lane / 4 * 4 + k % 8 / 2)->fragment[k / 8 * 2 + half];
      a[half][k] = __bfloat162float(__nv_bfloat16{uint16_t(two >> 16 * (k % 2))});
    }
  multiply_bf16<Columns>(p, a, [&](int k, int column) { return right.column(k, column); });
}

}  // namespace shim
