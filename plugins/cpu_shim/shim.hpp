// The part of CUDA C++ that the kernels use, on one host thread: every CUDA thread of a block is a fiber.
//
// What makes it a test bed rather than a simulator:
//  * warps run ahead of each other as far as barriers allow (the first, or the last, warp leads: `order`),
//  * dynamic shared memory starts as NaN in every block,
//  * cp.async copies land only when they are waited for; Hopper's asynchronous machinery is in async.hpp,
//  * of what an earlier launch may still be writing (`held`) a block sees nothing until all its threads wait for it,
//  * a warp-wide call that not all 32 lanes make, or a barrier nobody else reaches, is an error.
// So a missing barrier, wait or write changes the result. Dynamic shared memory only; full-warp masks only.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 h) {
  uint32_t wide = uint32_t(h.bits) << 16;
  float f;
  memcpy(&f, &wide, 4);
  return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t wide;
  memcpy(&wide, &f, 4);
  if (f != f) return {uint16_t((wide >> 16) | 0x40)};
  return {uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

namespace shim {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 << 10;

struct Copy {
  void* to;
  const void* from;
  int bytes, valid;
};

// A product of a warpgroup, done when it is waited for: d += A B, or d = A B.
struct Product {
  float* d;
  uint64_t a, b;
  bool accumulate;
  void (*of_bf16)(const Product&) = nullptr;  // what runs it, if not E4M3's
  const uint32_t* fragment = nullptr;         // A in registers
};

struct Rendezvous {
  unsigned generation = 0, arrived = 0;
  const char* what = nullptr;
};

struct Warp {
  Rendezvous meet;
  alignas(64) unsigned char slot[2][kWarp][64];
};

struct Fiber {
  void* stack_pointer;
  dim3 thread;
  int lane;
  bool done;
  Warp* warp;
  const unsigned* waits_on;
  unsigned waits_for;
  std::vector<std::vector<Copy>> copies;
  std::vector<Copy> unfenced = {};  // landed, and not yet visible to the async proxy
  std::vector<std::vector<Product>> products = std::vector<std::vector<Product>>(1);
  bool fenced = false;  // the accumulators are the tensor cores' until they are waited for
  bool waited = false;  // for the launches before this one
};

// Memory that earlier launches may still be writing, while a block has not waited for them.
struct Held {
  unsigned char* at;
  size_t bytes;
  std::vector<unsigned char> kept;
};

struct Block {
  dim3 index, size, grid;
  int live;
  Rendezvous barrier;
  unsigned char* shared;
  unsigned char* async_view;  // shared memory as the async proxy sees it
  size_t shared_bytes;
  int order;
  unsigned round;  // how often every warp had its turn
  unsigned dependency;  // 1 when the launches before this one are done
};

inline Fiber* current;
inline Block block;
inline void* scheduler_stack;
inline char error[256];
inline void (*entry)();
inline void** arguments;
inline std::vector<Held> held;

#if defined(__x86_64__)
__attribute__((naked, noipa)) static void switch_stack(void** /*save*/, void* /*load*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
inline void* fresh_stack(unsigned char* base, void (*start)()) {
  void** top = reinterpret_cast<void**>((uintptr_t(base) + kStack) & ~uintptr_t(63));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}
#elif defined(__aarch64__)
__attribute__((naked, noipa)) static void switch_stack(void** /*save*/, void* /*load*/) {
  asm("sub sp, sp, #160; stp x19, x20, [sp]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32];"
      "stp x25, x26, [sp, #48]; stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80];"
      "stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144];"
      "mov x9, sp; str x9, [x0]; mov sp, x1;"
      "ldp x19, x20, [sp]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48];"
      "ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112];"
      "ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]; add sp, sp, #160; ret");
}
inline void* fresh_stack(unsigned char* base, void (*start)()) {
  unsigned char* top = reinterpret_cast<unsigned char*>((uintptr_t(base) + kStack) & ~uintptr_t(63)) - 160;
  memset(top, 0, 160);
  reinterpret_cast<void**>(top)[11] = reinterpret_cast<void*>(start);
  return top;
}
#else
#error "the CPU shim switches stacks on x86-64 and aarch64 only"
#endif

inline void yield() { switch_stack(&current->stack_pointer, scheduler_stack); }

[[noreturn]] inline void fail(const char* message) {
  snprintf(error, sizeof error, "%s (block %u,%u,%u thread %u)", message, block.index.x, block.index.y,
           block.index.z, current->thread.x);
  for (;;) yield();
}

inline void meet(Rendezvous& r, unsigned expected, const char* what) {
  if (r.arrived == 0) r.what = what;
  if (r.what != what) fail("lanes of one warp, or threads of one block, wait at different calls");
  if (++r.arrived == expected) {
    r.arrived = 0;
    ++r.generation;
    if (&r == &block.barrier) yield();  // who came last goes on in its turn, as the others do
    return;
  }
  current->waits_on = &r.generation;
  current->waits_for = r.generation;
  yield();
  current->waits_on = nullptr;
}

// Publishes `mine` to the warp and returns a reader of every lane's value. All 32 lanes must call it.
template <class T>
struct Exchanged {
  const unsigned char (*slot)[64];
  T operator[](int lane) const {
    T value;
    memcpy(&value, slot[lane], sizeof(T));
    return value;
  }
  const T* lane(int i) const { return reinterpret_cast<const T*>(slot[i]); }
};
template <class T>
inline Exchanged<T> exchange(const T& mine, const char* what) {
  static_assert(sizeof(T) <= 64, "one slot of the warp exchange is 64 bytes");
  Warp& w = *current->warp;
  auto* slot = w.slot[w.meet.generation & 1];
  memcpy(slot[current->lane], &mine, sizeof(T));
  meet(w.meet, kWarp, what);
  return {slot};
}

inline void land(size_t keep) {
  auto& groups = current->copies;
  while (groups.size() > keep + 1) {
    for (const Copy& c : groups.front()) {
      memcpy(c.to, c.from, c.valid);
      memset(static_cast<char*>(c.to) + c.valid, 0, c.bytes - c.valid);
      if (block.async_view) current->unfenced.push_back(c);
    }
    groups.erase(groups.begin());
  }
}

// Takes what is held out of sight (NaN in its place), or shows it as it was.
inline void hide(bool hidden) {
  for (Held& h : held) {
    if (hidden) h.kept.assign(h.at, h.at + h.bytes);
    if (hidden)
      memset(h.at, 0xff, h.bytes);
    else
      memcpy(h.at, h.kept.data(), h.bytes);
  }
}

inline void wait_for_dependency() {
  if (current->waited || held.empty()) return;
  if (block.dependency) fail("a thread comes to wait for the launches before this one when others have waited");
  current->waited = true;
  current->waits_on = &block.dependency;
  current->waits_for = 0;
  yield();
  current->waits_on = nullptr;
}

// An asynchronous copy reads its source at once, whenever it lands.
inline void check_source(const void* from) {
  for (const Held& h : held)
    if (!current->waited && from >= h.at && from < h.at + h.bytes)
      fail("a copy from memory that an earlier launch may still be writing");
}

// Lets every other warp run as far as it may.
inline void step_back() {
  current->waits_on = &block.round;
  current->waits_for = block.round;
  yield();
  current->waits_on = nullptr;
}

inline void start() {
  entry();
  current->done = true;
  if (--block.live > 0 && block.barrier.arrived == unsigned(block.live)) {
    block.barrier.arrived = 0;
    ++block.barrier.generation;
  }
  for (;;) yield();
}

inline bool runnable(const Fiber& f) { return !f.done && !(f.waits_on && *f.waits_on == f.waits_for); }

// Runs one warp until each of its lanes is done or waits for another warp, or a barrier opens: then the first in order
// has its turn. False if nothing could run.
inline bool run_warp(Fiber* lanes) {
  const unsigned opened = block.barrier.generation;
  bool any = false, moved = true;
  while (moved && !error[0] && block.barrier.generation == opened) {
    moved = false;
    for (int i = 0; i < kWarp && !error[0] && block.barrier.generation == opened; ++i) {
      if (!runnable(lanes[i])) continue;
      current = &lanes[i];
      switch_stack(&scheduler_stack, lanes[i].stack_pointer);
      any = moved = true;
    }
  }
  return any;
}

inline void run_block(std::vector<Fiber>& fibers, std::vector<Warp>& warps, unsigned char* stacks) {
  int n = int(fibers.size()), n_warps = n / kWarp, idle = 0;
  block.live = n;
  block.barrier = {};
  for (Warp& w : warps) w.meet = {};
  for (int i = 0; i < n; ++i) {
    unsigned x = i % block.size.x, y = i / block.size.x % block.size.y, z = i / (block.size.x * block.size.y);
    fibers[i] = {fresh_stack(stacks + i * kStack, start), {x, y, z}, i % kWarp, false, &warps[i / kWarp],
                 nullptr, 0, std::vector<std::vector<Copy>>(1)};
  }
  block.dependency = held.empty();
  if (!block.dependency) hide(true);
  while (block.live > 0 && !error[0]) {
    bool any = false;
    const unsigned opened = block.barrier.generation;
    for (int w = 0; w < n_warps && block.barrier.generation == opened; ++w)
      any |= run_warp(&fibers[(block.order ? n_warps - 1 - w : w) * kWarp]);
    ++block.round;
    if (!any && !block.dependency) {
      hide(false);
      block.dependency = 1;
      any = true;
    }
    idle = any ? 0 : idle + 1;
    if (idle == 2) {
      current = &fibers[0];
      snprintf(error, sizeof error, "deadlock: %d threads wait for a barrier that others never reach", block.live);
    }
  }
  if (!block.dependency) hide(false);
  for (const Fiber& f : fibers)
    if (!held.empty() && !f.waited && !error[0])
      snprintf(error, sizeof error, "thread %u of block %u,%u,%u ended without waiting for the launches before it",
               f.thread.x, block.index.x, block.index.y, block.index.z);
}

inline void run_grid(dim3 grid, dim3 size, size_t shared_bytes, int order) {
  int n = int(size.x * size.y * size.z);
  error[0] = 0;
  if (n % kWarp) {
    snprintf(error, sizeof error, "a block of %d threads is not a whole number of warps", n);
    return;
  }
  std::vector<Fiber> fibers(n);
  std::vector<Warp> warps(n / kWarp);
  auto* stacks = static_cast<unsigned char*>(malloc(n * kStack));
  auto* shared = static_cast<unsigned char*>(aligned_alloc(1024, (shared_bytes + 2047) / 1024 * 1024));
  block.size = size;
  block.grid = grid;
  block.shared = shared;
  block.shared_bytes = shared_bytes;
  block.order = order;
  for (unsigned i = 0; i < grid.x * grid.y * grid.z && !error[0]; ++i) {
    block.index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
    block.async_view = nullptr;
    memset(shared, 0xff, shared_bytes);
    run_block(fibers, warps, stacks);
  }
  free(shared);
  free(stacks);
}

// From now on launches find that memory held; none with n = 0.
extern "C" __attribute__((used)) inline void shim_hold(void** at, const size_t* bytes, int n) {
  held.clear();
  for (int i = 0; i < n; ++i) held.push_back({static_cast<unsigned char*>(at[i]), bytes[i], {}});
}

template <class... A, size_t... I>
inline void call(void (*kernel)(A...), std::index_sequence<I...>) {
  kernel(*static_cast<std::decay_t<A>*>(arguments[I])...);
}
template <class... A>
inline void invoke(void (*kernel)(A...)) {
  call(kernel, std::index_sequence_for<A...>{});
}
template <class... A>
constexpr int arity(void (*)(A...)) {
  return sizeof...(A);
}

}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx (shim::block.index)
#define blockDim (shim::block.size)
#define gridDim (shim::block.grid)

inline void __syncthreads() { shim::meet(shim::block.barrier, shim::block.live, "__syncthreads"); }
inline void __syncwarp(unsigned = ~0u) { shim::meet(shim::current->warp->meet, shim::kWarp, "__syncwarp"); }

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane) {
  if (mask != ~0u) shim::fail("the shim's warp calls take the full mask");
  return shim::exchange(value, "__shfl_sync")[lane & 31];
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  if (mask != ~0u) shim::fail("the shim's warp calls take the full mask");
  return shim::exchange(value, "__shfl_xor_sync")[shim::current->lane ^ lanes];
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int delta) {
  if (mask != ~0u) shim::fail("the shim's warp calls take the full mask");
  auto all = shim::exchange(value, "__shfl_up_sync");
  return shim::current->lane < delta ? value : all[shim::current->lane - delta];
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int delta) {
  if (mask != ~0u) shim::fail("the shim's warp calls take the full mask");
  auto all = shim::exchange(value, "__shfl_down_sync");
  return shim::current->lane + delta > 31 ? value : all[shim::current->lane + delta];
}

// Blocks run one after another on one thread, so a plain read-modify-write is atomic.
template <class T>
inline T atomicAdd(T* p, T v) {
  T old = *p;
  *p = old + v;
  return old;
}
inline void __threadfence() {}
