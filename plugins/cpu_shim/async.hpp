// Hopper's asynchronous machinery on the shim: mbarriers, bulk copies, the async proxy and warpgroup products.
//
//  * a bulk copy lands when its barrier is waited for and nothing else is missing there; in reverse order, at once,
//  * what cp.async wrote is seen by a warpgroup's product only after the writing thread's proxy fence,
//  * a product reads its operands, through the bits of the descriptors, when it is waited for; in reverse order, after
//    the other warps have run as far ahead as they may,
//  * a product without a fence since the last wait is an error, and so is a wait that nobody can end.
#pragma once
#include <map>

#include "shim.hpp"

namespace shim {

struct AsyncBarrier {
  unsigned phase = 0;  // phases completed
  int arrivals, missing, waiting = 0;
  long bytes = 0;  // expected, and not yet landed
  std::vector<Copy> copies = {};
};

inline std::map<const void*, AsyncBarrier> barriers;  // of the running block

// Starts the block's asynchronous life: the view of the async proxy is as empty as shared memory was.
inline void begin_async() {
  static std::vector<unsigned char> view;
  if (block.async_view) return;
  view.assign(block.shared_bytes, 0xff);
  block.async_view = view.data();
  barriers.clear();
}

inline size_t shared_offset(const void* at) {
  const size_t offset = size_t(static_cast<const unsigned char*>(at) - block.shared);
  if (offset >= block.shared_bytes) fail("an address outside of shared memory");
  return offset;
}

inline AsyncBarrier& barrier_at(const void* at) {
  auto found = barriers.find(at);
  if (found == barriers.end()) fail("a barrier that was not initialized");
  return found->second;
}

inline void land_bulk(AsyncBarrier& b) {
  for (const Copy& c : b.copies) {
    memcpy(c.to, c.from, c.bytes);
    memcpy(block.async_view + shared_offset(c.to), c.from, c.bytes);
    b.bytes -= c.bytes;
  }
  b.copies.clear();
}

inline void complete(AsyncBarrier& b) {
  if (b.missing || (b.bytes && !b.waiting)) return;
  land_bulk(b);
  if (b.bytes) return;
  b.missing = b.arrivals;
  ++b.phase;
}

inline void arrive(AsyncBarrier& b, long bytes) {
  if (b.missing == 0) fail("more arrivals than the barrier counts");
  b.bytes += bytes;
  --b.missing;
  complete(b);
}

inline void copy_bulk(AsyncBarrier& b, void* to, const void* from, int bytes) {
  b.copies.push_back({to, from, bytes, bytes});
  if (block.order) land_bulk(b);
}

inline void wait(AsyncBarrier& b, unsigned parity) {
  while ((b.phase & 1) == parity) {
    ++b.waiting;
    complete(b);
    if ((b.phase & 1) == parity) {
      current->waits_on = &b.phase;
      current->waits_for = b.phase;
      yield();
      current->waits_on = nullptr;
    }
    --b.waiting;
  }
}

inline void fence_proxy() {
  for (const Copy& c : current->unfenced) memcpy(block.async_view + shared_offset(c.to), c.to, c.bytes);
  current->unfenced.clear();
}

inline float e4m3_value(unsigned char code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return NAN;
  const float size = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
  return code & 0x80 ? -size : size;
}

// 32 values of K of one row of a K-major operand: matrix descriptor format of the PTX ISA, 128-byte swizzle.
inline void operand_row(uint64_t descriptor, int row, float (&to)[32]) {
  static float values[256];
  if (values[8] == 0.0f)
    for (int code = 0; code < 256; ++code) values[code] = e4m3_value(code);
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("a descriptor without the 128-byte swizzle");
  const size_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const size_t first = start + row / 8 * stride + row % 8 * 128;
  if (first + 32 > block.shared_bytes) fail("a descriptor beyond shared memory");
  for (int k = 0; k < 32; ++k) {
    const size_t at = first + k;
    to[k] = values[block.async_view[at ^ (at >> 7 & 7) << 4]];
  }
}

// This thread's part of D [64, 8 * Columns]: rows 16 warp + lane / 4 (+ 8), columns 8 n + 2 (lane % 4) (+ 1).
template <int Columns>
inline void multiply(const Product& p) {
  const int lane = current->lane, warp = int(current->thread.x) / kWarp % 4;
  float a[2][32], b[32];
  for (int half = 0; half < 2; ++half) operand_row(p.a, 16 * warp + lane / 4 + 8 * half, a[half]);
  for (int n = 0; n < Columns; ++n)
    for (int i = 0; i < 2; ++i) {
      operand_row(p.b, 8 * n + 2 * (lane % 4) + i, b);
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0f;
        for (int k = 0; k < 32; ++k) sum += a[half][k] * b[k];
        float& d = p.d[4 * n + 2 * half + i];
        d = p.accumulate ? d + sum : sum;
      }
    }
}

inline void issue(const Product& p) {
  if (!current->fenced) fail("a warpgroup product without a fence before it");
  const auto all = exchange(p, "wgmma");
  if (all.lane(0)->a != p.a || all.lane(0)->b != p.b) fail("lanes of one warp pass different descriptors");
  current->products.back().push_back(p);
}

template <int Columns>
inline void finish_products(size_t keep) {
  if (block.order) step_back();
  auto& groups = current->products;
  while (groups.size() > keep + 1) {
    for (const Product& p : groups.front()) p.of_bf16 ? p.of_bf16(p) : multiply<Columns>(p);
    groups.erase(groups.begin());
  }
  current->fenced = false;
}

}  // namespace shim
