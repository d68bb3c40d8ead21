// Blocks of three warpgroups (sm_90a): two multiply what the third keeps on its way, through a ring of stages in shared
// memory. A stage has two barriers: `full` when its operands are there, `empty` when both have read them.
#pragma once
#include "hopper.cuh"
#include "warp.cuh"

constexpr int kGroup = 128, kMultipliers = 2, kWarpgroupThreads = kGroup * (kMultipliers + 1);
// Registers per thread: at launch, all that 384 threads can have in whole eights, and after they are dealt out anew. A
// warpgroup that asks for more than the others left waits for ever.
constexpr int kLaunchRegisters = 65536 / kWarpgroupThreads / 8 * 8, kProducerRegisters = 56, kMultiplierRegisters = 224;
static_assert(kGroup * (kProducerRegisters + kMultipliers * kMultiplierRegisters) <= kWarpgroupThreads * kLaunchRegisters,
              "more registers than the block has");

// By all threads of the block. `arrivals`: at a stage that is full; empty, a warp of the multipliers counts once.
template <int Stages>
__device__ __forceinline__ void init_ring(Barrier (&full)[Stages], Barrier (&empty)[Stages], int arrivals) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Stages; ++stage) {
      init_barrier(&full[stage], arrivals);
      init_barrier(&empty[stage], kMultipliers * kGroup / 32);
    }
    fence_async();
  }
  __syncthreads();
}

// `produce` gets the thread of its warpgroup, `multiply` the number of its warpgroup.
template <class Produce, class Multiply>
__device__ __forceinline__ void deal_out(Produce produce, Multiply multiply) {
  const int group = __shfl_sync(kFullWarp, int(threadIdx.x) / kGroup, 0);
  if (group == kMultipliers) {
    give_registers<kProducerRegisters>();
    produce(int(threadIdx.x) % kGroup);
  } else {
    take_registers<kMultiplierRegisters>();
    multiply(group);
  }
}
