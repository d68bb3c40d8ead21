// Which block of a launch is done last, and so may read what all of them wrote.
#pragma once
#include "cuda.cuh"

// Whether this block is the last of `blocks` to come here; what the others wrote before is then there to be read. `arrived`
// is 0 before and after; `memory` is the block's own, and free once all threads are here.
__device__ inline bool is_last(int* arrived, int blocks, float* memory) {
  __threadfence();
  __syncthreads();  // memory is free, and every thread's part is written
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(arrived, 1) == blocks - 1;
    if (last) *arrived = 0;  // as it was found
    *memory = last ? 1.0f : 0.0f;
  }
  __syncthreads();
  const bool last = *memory != 0.0f;
  __syncthreads();
  return last;
}
