// The one include of every kernel: CUDA proper under nvcc, the CPU shim under g++.
#pragma once
#ifdef DELTART_CPU_SHIM
#include "../cpu_shim/shim.hpp"
#define SHARED_MEMORY(name) unsigned char* name = shim::block.shared
// The host's entry to a kernel: void* arguments as cuLaunchKernel takes them; 0, or -1 with a message.
#define EXPORT_KERNEL(kernel)                                                                             \
  extern "C" int kernel##_launch(const unsigned* grid, const unsigned* block, size_t shared, void** args, \
                                 int n_args, int order, char* message, int room) {                        \
    shim::arguments = args;                                                                               \
    shim::entry = [] { shim::invoke(kernel); };                                                           \
    if (n_args != shim::arity(kernel))                                                                    \
      snprintf(shim::error, sizeof shim::error, #kernel " takes %d arguments", shim::arity(kernel));      \
    else                                                                                                  \
      shim::run_grid({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, order);         \
    snprintf(message, room, "%s", shim::error);                                                           \
    return shim::error[0] ? -1 : 0;                                                                       \
  }
#else
#include <cuda_bf16.h>
#include <stdint.h>
// Aligned to the 1024 bytes of a swizzle atom.
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#define EXPORT_KERNEL(kernel)
#endif

typedef __nv_bfloat16 bf16;

#include "dependency.cuh"
