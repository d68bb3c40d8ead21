// Programmatic dependent launch (PTX: griddepcontrol, from sm_90 on): a kernel may begin while the one before it on the
// stream still runs. Until it has waited it reads weights alone, and writes nothing but shared memory;
// that a line should come to the L2 it may ask of any memory.
//
// Every block waits before it ends: so the end of a kernel is the end of all before it. A kernel lets the next one begin
// first of all, but for those that keep memory busy: behind their last read, when the next one's first weights can come. A
// kernel launched without the attribute waits for nothing.
#pragma once

#ifdef DELTART_CPU_SHIM
inline void launch_dependents() {}
inline void wait_for_dependency() { shim::wait_for_dependency(); }
#else
__device__ __forceinline__ void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_dependency() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

// The first statement of a kernel that has nothing to do before.
__device__ __forceinline__ void begin_dependent() {
  launch_dependents();
  wait_for_dependency();
}
