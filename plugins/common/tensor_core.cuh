// Warp-wide matrix primitives: bf16 mma m16n8k16, ldmatrix, cp.async (sm_80 and later), and their host bodies.
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, m16n8k16):
//   A [16, 16] four registers: rows g, g+8, g, g+8; columns 2t, 2t, 2t+8, 2t+8 (and the next one, in the high half)
//   B [16, 8]  two registers:  rows 2t and 2t+8 (and the next one), column g
//   C [16, 8]  four floats:    row g columns 2t, 2t+1; row g+8 columns 2t, 2t+1
// So the C of two neighbouring column tiles is, rounded to bf16, the A of the next product.
#pragma once
#include "vector.cuh"

typedef uint32_t BfPair;  // two bf16, the first in the low half

#ifdef DELTART_CPU_SHIM

inline float low(BfPair p) { return to_float(bf16{uint16_t(p)}); }
inline float high(BfPair p) { return to_float(bf16{uint16_t(p >> 16)}); }
inline BfPair pair(float a, float b) {
  return uint32_t(__float2bfloat16_rn(a).bits) | uint32_t(__float2bfloat16_rn(b).bits) << 16;
}

struct MmaOperands {
  BfPair a[4], b[2];
};
inline void mma(float (&c)[4], const BfPair (&a)[4], const BfPair (&b)[2]) {
  const auto warp = shim::exchange(MmaOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, "mma");
  const int g = shim::current->lane / 4, t = shim::current->lane % 4;
  for (int k = 0; k < 4; ++k) {
    const BfPair *row0 = warp.lane(g * 4 + k)->a, *column0 = warp.lane(2 * t * 4 + k)->b;
    const BfPair* column1 = warp.lane((2 * t + 1) * 4 + k)->b;
    for (int half = 0; half < 2; ++half) {
      const BfPair top = row0[2 * half], bottom = row0[2 * half + 1], left = column0[half], right = column1[half];
      c[0] += low(top) * low(left) + high(top) * high(left);
      c[1] += low(top) * low(right) + high(top) * high(right);
      c[2] += low(bottom) * low(left) + high(bottom) * high(left);
      c[3] += low(bottom) * low(right) + high(bottom) * high(right);
    }
  }
}

template <bool Transposed>
inline void load_matrices(BfPair (&to)[4], const bf16* row) {
  const auto warp = shim::exchange(row, "ldmatrix");
  const int g = shim::current->lane / 4, t = shim::current->lane % 4;
  for (int m = 0; m < 4; ++m) {
    const bf16* first = Transposed ? warp[m * 8 + 2 * t] + g : warp[m * 8 + g] + 2 * t;
    const bf16* second = Transposed ? warp[m * 8 + 2 * t + 1] + g : first + 1;
    to[m] = uint32_t(first->bits) | uint32_t(second->bits) << 16;
  }
}

inline void copy_async(void* to, const void* from, bool live) {
  if (live) shim::check_source(from);
  shim::current->copies.back().push_back({to, from, 16, live ? 16 : 0});
}
inline void copy_word_async(void* to, const void* from, int live) {
  if (live) shim::check_source(from);
  shim::current->copies.back().push_back({to, from, 4, live});
}
inline void prefetch(const void*) {}
inline void commit_copies() { shim::current->copies.emplace_back(); }
template <int Pending>
inline void wait_copies() {
  shim::land(Pending);
}

#else

__device__ __forceinline__ BfPair pair(float a, float b) {
  BfPair p;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(b), "f"(a));
  return p;
}
__device__ __forceinline__ float low(BfPair p) { return __uint_as_float(p << 16); }
__device__ __forceinline__ float high(BfPair p) { return __uint_as_float(p & 0xffff0000u); }

// C += A B
__device__ __forceinline__ void mma(float (&c)[4], const BfPair (&a)[4], const BfPair (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices from shared memory; lane 8m + r gives the address of row r of matrix m (16 bytes, aligned).
// A lane gets row g, columns 2t and 2t+1 of each; Transposed: rows 2t and 2t+1, column g.
template <bool Transposed>
__device__ __forceinline__ void load_matrices(BfPair (&to)[4], const bf16* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// 16 bytes from global to shared memory in the background; zeros if not live.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool live) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(live ? 16 : 0)
               : "memory");
}
// Four bytes, of which the first `live` are read and the others zero.
__device__ __forceinline__ void copy_word_async(void* to, const void* from, int live) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(live)
               : "memory");
}
// Asks for the line of 128 bytes at this address to be in the L2. It is a hint, which may come before what it names is there.
__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's committed groups are under way.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

#endif

// `bytes` from `from` on to the L2, by the block.
__device__ __forceinline__ void prefetch_all(const void* from, size_t bytes) {
  for (size_t at = threadIdx.x * size_t(128); at < bytes; at += blockDim.x * size_t(128))
    prefetch(static_cast<const unsigned char*>(from) + at);
}

// Where the 16-byte piece of a row of 128 bytes is, in bytes: eight rows have a piece in different banks, as the 128-byte
// swizzle of warpgroup products has it.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * 128 + (piece ^ row % 8) * 16; }

// x as a sum of `Terms` bf16 numbers, the largest first: 8, 16 or 24 bits of it.
template <int Terms>
__device__ __forceinline__ void split(float x, float y, BfPair (&to)[Terms]) {
#pragma unroll
  for (int i = 0; i < Terms; ++i) {
    to[i] = pair(x, y);
    x -= low(to[i]), y -= high(to[i]);
  }
}

// A matrix operand in registers, as a sum of `Terms` bf16 matrices.
template <int Terms>
struct Operand {
  BfPair term[Terms][4];

  // From the C fragments of two neighbouring column tiles.
  __device__ __forceinline__ Operand(const float (&left)[4], const float (&right)[4]) {
    set(0, left[0], left[1]);
    set(1, left[2], left[3]);
    set(2, right[0], right[1]);
    set(3, right[2], right[3]);
  }
  // Plane `plane` of the 16x16 block at (row, column) of a shared-memory tile.
  template <class Tile>
  __device__ __forceinline__ Operand(const Tile& tile, int plane, int row, int column) {
    static_assert(Terms == 1, "a tile's plane is one term");
    tile.template read<false, true>(term[0], plane, row, column);
  }
  __device__ __forceinline__ void set(int i, float x, float y) {
    BfPair parts[Terms];
    split<Terms>(x, y, parts);
#pragma unroll
    for (int n = 0; n < Terms; ++n) term[n][i] = parts[n];
  }
};

// c[2n], c[2n + 1] += A B_n for n in [First, N): pairs of column tiles, b[n] holding both (from load_matrices).
// Products of terms whose orders add up to `Keep` or more are dropped: they are below the last bit that Keep terms
// hold. Neighbouring products go to different accumulators, so that their latencies overlap.
template <int Keep, int N, int Terms>
__device__ __forceinline__ void multiply(float (*c)[4], const Operand<Terms>& a, const BfPair (&b)[N][4], int plane,
                                         int first = 0) {
#pragma unroll
  for (int term = 0; term < Terms; ++term) {
    if (term + plane >= Keep) continue;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n < first) continue;
      const BfPair left[2] = {b[n][0], b[n][1]}, right[2] = {b[n][2], b[n][3]};
      mma(c[2 * n], a.term[term], left);
      mma(c[2 * n + 1], a.term[term], right);
    }
  }
}
