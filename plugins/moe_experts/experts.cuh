// What the kernels of the routed experts share: where an expert's matrices lie, and who goes to which.
//
// Every token has `choices` places: its chosen experts by falling logit, and the shared one last where there is one.
// A place holds the slot of its expert, `slots` for the shared one, or -1: an expert in no slot, or no token.
#pragma once
#include "../common/linear_tile.cuh"

enum Part { kDown, kGate, kUp };  // of an expert, as the vendor's file has them

// The matrices of all experts; of the shared one if it is there. Sizes: H hidden, I and shared width.
struct Stored {
  const void *gate_up, *down;  // E4M3: both the region [slots, 3, H I]; bf16: [slots, 2 I, H] and [slots, H, I]
  const void* scale;           // E4M3: [slots, 3, blocks]
  const void* shared[3];       // by Part
  const void* shared_scale[3];
  int bf16_scales, slots, H, I, shared_width;

  __device__ int width(int slot) const { return slot == slots ? shared_width : I; }
};

__device__ __forceinline__ Parameter moved(const void* scale, int is_bf16, size_t by) {
  return {static_cast<const unsigned char*>(scale) + by * (is_bf16 ? 2 : 4), is_bf16};
}

// One matrix, [width, H] or, down, [H, width].
__device__ __forceinline__ BlockFp8 matrix(const Stored& in, int slot, Part part, BlockFp8*) {
  const int width = in.width(slot), N = part == kDown ? in.H : width, K = part == kDown ? width : in.H;
  if (slot == in.slots)
    return {static_cast<const uint8_t*>(in.shared[part]), {in.shared_scale[part], in.bf16_scales}, N, K};
  constexpr int kBlock = BlockFp8::kBlock;
  const size_t at = size_t(slot) * 3 + part, blocks = size_t((in.H + kBlock - 1) / kBlock) * ((in.I + kBlock - 1) / kBlock);
  const uint8_t* weight = static_cast<const uint8_t*>(in.gate_up) + at * in.H * in.I;
  return {weight, moved(in.scale, in.bf16_scales, at * blocks), N, K};
}
__device__ __forceinline__ Bf16 matrix(const Stored& in, int slot, Part part, Bf16*) {
  const int width = in.width(slot), N = part == kDown ? in.H : width, K = part == kDown ? width : in.H;
  if (slot == in.slots) return {static_cast<const bf16*>(in.shared[part]), N, K};
  const size_t size = size_t(in.H) * in.I;
  const bf16* weight = part == kDown ? static_cast<const bf16*>(in.down) + slot * size
                                     : static_cast<const bf16*>(in.gate_up) + (size_t(slot) * 2 + (part == kUp)) * size;
  return {weight, N, K};
}
template <class Weight>
__device__ __forceinline__ Weight matrix(const Stored& in, int slot, Part part) {
  return matrix(in, slot, part, static_cast<Weight*>(nullptr));
}

__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// A kernel's arguments for all that is stored.
#define STORED_ARGUMENTS                                                                                            \
  const void *gate_up_weight, const void *down_weight, const void *scale, const void *shared_gate,                  \
      const void *shared_up, const void *shared_down, const void *shared_gate_scale_inv, const void *shared_up_scale_inv,   \
      const void *shared_down_scale_inv, int bf16_scales, int slots, int H, int I, int shared_width
#define STORED                                                                                                  \
  {gate_up_weight, down_weight, scale, {shared_down, shared_gate, shared_up},                                   \
   {shared_down_scale_inv, shared_gate_scale_inv, shared_up_scale_inv}, bf16_scales, slots, H, I, shared_width}
