// The routed experts of many tokens: places in the order of their slots, in tiles of one slot each; and what surrounds
// the products, which prefill.cu and prefill_wgmma.cu have.
//
// Every step is a function of the routes alone: no atomics, equal inputs give equal bits.
//   count    how many places hold each slot               arrange  their order, and the tiles of it
//   quantize x, and h, to E4M3 with a scale per row and 128 of K, where the products take that (W8A8)
//   gate_up  h [ordered place] = silu(x gate^T) * (x up^T)  down     rows [ordered place] = weight * (h down^T)
//   combine  y [token] = the sum of its rows, in the order of its places
#pragma once
#include "../common/quantize.cuh"
#include "route.cuh"

namespace {

constexpr int kOrderThreads = 256;

struct Order {
  const int* slot;  // [places], by token
  int *count;       // [groups]: slots, and the shared one
  int *place;       // [places] in the order of their slots
  int *position;    // of each place in that order, -1 where it has no slot
  int *tile_slot, *tile_first, *tile_tokens;  // [tiles]; slot -1 where there is none
  int places, groups, tiles, each;  // each: the most places of a tile
};

// What the products read of it.
struct Tiles {
  const int *place, *slot, *first, *tokens;
};

// The sum over the block of one integer a thread; `partial` has room for every warp.
__device__ int block_count(int x, int* partial) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(kFullWarp, x, mask);
  __syncthreads();  // the last call's parts are read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  int sum = 0;
  for (int warp = 0; warp < kOrderThreads / 32; ++warp) sum += partial[warp];
  return sum;
}

constexpr int kEach = 4, kWarpPlaces = 32 * kEach;  // places of a lane, and of a warp, at a time
constexpr int kNone = -2;                            // the slot of what is no place

__device__ __forceinline__ void load_slots(const Order& in, int i, int (&slot)[kEach]) {
  if (i + kEach <= in.places) {
    const uint4 four = *reinterpret_cast<const uint4*>(in.slot + i);
    slot[0] = int(four.x), slot[1] = int(four.y), slot[2] = int(four.z), slot[3] = int(four.w);
    return;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) slot[j] = i + j < in.places ? in.slot[i + j] : kNone;
}

// How many of the places from `first` to `stop`, by turns of `lanes` lanes, this one has of a slot.
__device__ __forceinline__ int count_slot(const Order& in, int slot, int first, int stop, int lane, int lanes) {
  int found = 0;
#pragma unroll 4
  for (int i = first + lane * kEach; i < stop; i += lanes * kEach) {
    int slots[kEach];
    load_slots(in, i, slots);
#pragma unroll
    for (int j = 0; j < kEach; ++j) found += slots[j] == slot;
  }
  return found;
}

// One block per slot.
__device__ void count(const Order& in, int* partial) {
  const int found = block_count(count_slot(in, blockIdx.x, 0, in.places, threadIdx.x, kOrderThreads), partial);
  if (threadIdx.x == 0) in.count[blockIdx.x] = found;
}

// One block per slot: its places go behind those of the slots before it, each behind the earlier ones. A warp has a stretch
// of the places: it counts its own first, and then knows where they go.
__device__ void arrange(const Order& in, int* partial) {
  const int slot = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int before = 0, tiles = 0;
  for (int i = threadIdx.x; i < slot; i += kOrderThreads) {
    before += in.count[i];
    tiles += (in.count[i] + in.each - 1) / in.each;
  }
  before = block_count(before, partial), tiles = block_count(tiles, partial);
  const int mine = in.count[slot], own_tiles = (mine + in.each - 1) / in.each;
  const int last = slot + 1 == in.groups ? in.tiles : tiles + own_tiles;
  for (int i = tiles + threadIdx.x; i < last; i += kOrderThreads) {
    const bool is = i < tiles + own_tiles;
    in.tile_slot[i] = is ? slot : -1;
    in.tile_first[i] = before + (i - tiles) * in.each;
    in.tile_tokens[i] = is ? min(in.each, mine - (i - tiles) * in.each) : 0;
  }
  constexpr int kWarps = kOrderThreads / 32;
  const int stretch = (in.places + kWarps * kWarpPlaces - 1) / (kWarps * kWarpPlaces) * kWarpPlaces;
  const int first = warp * stretch, stop = min(first + stretch, in.places);
  int found = count_slot(in, slot, first, stop, lane, 32);
#pragma unroll
  for (int mask = 16; mask; mask /= 2) found += __shfl_xor_sync(kFullWarp, found, mask);
  __syncthreads();  // the tiles' parts are read
  if (lane == 0) partial[warp] = found;
  __syncthreads();
  for (int other = 0; other < warp; ++other) before += partial[other];
  for (int start = first; start < stop; start += kWarpPlaces) {
    const int i = start + lane * kEach;
    int slots[kEach], upto = 0;
    load_slots(in, i, slots);
#pragma unroll
    for (int j = 0; j < kEach; ++j) upto += slots[j] == slot;
    const int own = upto;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int below = __shfl_up_sync(kFullWarp, upto, delta);
      if (lane >= delta) upto += below;
    }
    int at = before + upto - own;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (slots[j] == slot) in.place[at] = i + j, in.position[i + j] = at++;
      if (slot == 0 && slots[j] == -1) in.position[i + j] = -1;
    }
    before += __shfl_sync(kFullWarp, upto, 31);
  }
}

// x [rows, K] as E4M3, half a warp for 128 of K. With `position`, x has the ordered places, of which each is as wide as its
// expert; what lies beyond is not read.
struct Rounding {
  const bf16* x;
  const int *slot, *position;  // [rows], or null
  unsigned char* codes;        // [rows, K]
  float* scales;               // [rows, ceil(K / 128)]
  int rows, K;
};

__device__ void quantize(const Rounding& in, int slots, int width, int shared_width) {
  const int blocks = (in.K + BlockFp8::kBlock - 1) / BlockFp8::kBlock, lane = threadIdx.x % kQuantizeLanes;
  const long long group = blockIdx.x * (long long)(kOrderThreads / kQuantizeLanes) + threadIdx.x / kQuantizeLanes;
  const int i = int(group / blocks), block = int(group % blocks), k = block * BlockFp8::kBlock + lane * 8;
  const int row = i >= in.rows ? -1 : in.position ? in.position[i] : i;
  const int stop = row < 0 ? 0 : !in.position ? in.K : in.slot[i] == slots ? shared_width : width;
  float values[8] = {}, scale;
  if (k < stop) load(in.x + size_t(row) * in.K + k, values);
  const uint2 word = quantize_eight(values, scale);
  if (k < stop) *reinterpret_cast<uint2*>(in.codes + size_t(row) * in.K + k) = word;
  if (row >= 0 && lane == 0) in.scales[size_t(row) * blocks + block] = scale;
}

// Eight values of y a thread.
__device__ void combine(const bf16* rows, const int* position, bf16* y, int choices, int H, long long count) {
  const long long first = (blockIdx.x * (long long)(kOrderThreads) + threadIdx.x) * 8;
  if (first >= count) return;
  const long long token = first / H;
  const int column = int(first % H);
  float sum[8] = {};
  for (int i = 0; i < choices; ++i) {
    const int at = position[token * choices + i];
    if (at < 0) continue;
    float row[8];
    load(rows + size_t(at) * H + column, row);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] += row[j];
  }
  store(y + first, sum);
}

__device__ __forceinline__ void put(bf16* to, float first, float second) {
  *reinterpret_cast<BfPair*>(to) = pair(first, second);
}

}  // namespace

#define ORDER_ARGUMENTS \
  const int *place, const int *tile_slot, const int *tile_first, const int *tile_tokens

extern "C" __global__ void __launch_bounds__(kOrderThreads) moe_experts_count(const int* slot, int* count_of, int places) {
  begin_dependent();
  SHARED_MEMORY(memory);
  count({slot, count_of, nullptr, nullptr, nullptr, nullptr, nullptr, places, 0, 0, 0}, reinterpret_cast<int*>(memory));
}

extern "C" __global__ void __launch_bounds__(kOrderThreads)
    moe_experts_arrange(const int* slot, int* count_of, int* place, int* position, int* tile_slot, int* tile_first,
                        int* tile_tokens, int places, int groups, int tiles, int each) {
  begin_dependent();
  SHARED_MEMORY(memory);
  arrange({slot, count_of, place, position, tile_slot, tile_first, tile_tokens, places, groups, tiles, each},
          reinterpret_cast<int*>(memory));
}

extern "C" __global__ void __launch_bounds__(kOrderThreads)
    moe_experts_quantize(const bf16* x, const int* slot, const int* position, unsigned char* codes, float* scales, int rows,
                         int K, int slots, int width, int shared_width) {
  begin_dependent();
  quantize({x, slot, position, codes, scales, rows, K}, slots, width, shared_width);
}
EXPORT_KERNEL(moe_experts_quantize)

extern "C" __global__ void __launch_bounds__(kOrderThreads)
    moe_experts_combine(const bf16* rows, const int* position, bf16* y, int choices, int H, long long count) {
  begin_dependent();
  combine(rows, position, y, choices, H, count);
}

EXPORT_KERNEL(moe_experts_count)
EXPORT_KERNEL(moe_experts_arrange)
EXPORT_KERNEL(moe_experts_combine)
ROUTE_KERNEL(bf16, bf16)
