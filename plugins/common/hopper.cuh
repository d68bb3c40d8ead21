// Hopper's asynchronous instructions: mbarriers, bulk copies, E4M3 wgmma (sm_90a), and their host bodies.
//
// A warpgroup's product D [64, 128] += A [64, 32] B [32, 128]^T reads both operands from shared memory, K-major with
// the 128-byte swizzle: rows of 128 bytes, eight to a 1024-byte atom, 16-byte piece i of row r at piece i ^ r % 8. The
// next 32 of K are 32 bytes further on. Thread t of the warpgroup holds rows 16 (t / 32) + t % 32 / 4 (+ 8 where
// i % 4 >= 2), columns 8 (i / 4) + 2 (t % 4) + i % 2 of D (PTX ISA: wgmma.mma_async, matrix descriptor format).
#pragma once
#include "fp8.cuh"

constexpr int kAtom = 1024;         // bytes of eight swizzled rows
constexpr int kProductColumns = 16;  // of eight, in D

typedef uint64_t Barrier;

#ifdef DELTART_CPU_SHIM
#include "../cpu_shim/async.hpp"

inline uint32_t shared_address(const void* at) { return uint32_t(shim::shared_offset(at)); }
inline void init_barrier(Barrier* at, int arrivals) {
  shim::begin_async();
  shim::barriers[at] = {0, arrivals, arrivals};
}
inline void fence_async() { shim::fence_proxy(); }
inline void arrive(Barrier* at) { shim::arrive(shim::barrier_at(at), 0); }
inline void arrive_expecting(Barrier* at, int bytes) { shim::arrive(shim::barrier_at(at), bytes); }
inline void wait(Barrier* at, int parity) { shim::wait(shim::barrier_at(at), parity); }
inline void copy_bulk(void* to, const void* from, int bytes, Barrier* at) {
  shim::copy_bulk(shim::barrier_at(at), to, from, bytes);
}
inline void fence_products(float (&)[64]) { shim::current->fenced = true; }
inline void commit_products() { shim::current->products.emplace_back(); }
template <int Pending>
inline void wait_products(float (&)[64]) {
  shim::finish_products<kProductColumns>(Pending);
}
inline void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) { shim::issue({d, a, b, accumulate}); }
template <int Registers>
inline void give_registers() {}
template <int Registers>
inline void take_registers() {}

#else

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}
__device__ __forceinline__ void init_barrier(Barrier* at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals) : "memory");
}
// Makes what this thread wrote to shared memory visible to bulk copies and warpgroup products.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void arrive(Barrier* at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
}
// Arrives, and adds bytes that must land before the phase is complete.
__device__ __forceinline__ void arrive_expecting(Barrier* at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)), "r"(bytes) : "memory");
}
// Returns once the phase of this parity is complete; the phase before the first has parity 1.
__device__ __forceinline__ void wait(Barrier* at, int parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(at)), "r"(parity)
        : "memory");
}
// A whole number of 16 bytes, aligned to 16, from global to shared memory by one thread.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, Barrier* at) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(at))
               : "memory");
}
// The accumulators as operands: what the code does with them before and after stays there.
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D64 D16(0), D16(16), D16(32), D16(48)
// Before the first product after the accumulators were touched.
__device__ __forceinline__ void fence_products(float (&d)[64]) {
  asm volatile("wgmma.fence.sync.aligned;" : D64::"memory");
}
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void wait_products(float (&d)[64]) {
  asm volatile("wgmma.wait_group.sync.aligned %64;" : D64 : "n"(Pending) : "memory");
}

// d += A B^T, or d = A B^T. Done when it was committed and waited for; until then d must not be touched.
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1;\n}"
      : D64
      : "l"(a), "l"(b), "r"(int(accumulate)));
}
#undef D64
#undef D16
#undef D4

// A warpgroup's registers per thread, from here on.
template <int Registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

#endif

// The descriptor of a swizzled operand whose atoms follow each other: bits 0-13 address / 16, 16-29 leading offset
// (not used with this swizzle), 32-45 bytes from one atom to the next / 16, 62-63 the swizzle (1: 128 bytes).
__device__ __forceinline__ uint64_t describe(const void* operand) {
  return uint64_t((shared_address(operand) & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(kAtom >> 4) << 32 | uint64_t(1) << 62;
}
