// Tokens to experts: the k largest logits of each by counting how many are larger, and the weights of its places.
#pragma once
#include "../common/warp.cuh"
#include "experts.cuh"

struct Routing {
  const void* x;                   // [M, H] f32 or bf16, for the shared expert's gate
  const float* logits;             // [M, experts]
  const int *n_tokens, *slot_expert;  // [B]; [slots], or null: slot s holds expert s
  Parameter shared_gate;           // [H]; data null without a shared expert
  int* slot;                       // [M, choices]
  float* weight;
  int tokens, experts, slots, chosen, H;
};

// The sum over the block of one value a thread, in a fixed order; `partial` has room for every warp.
__device__ inline float block_sum(float x, float* partial) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) sum += partial[warp];
  return sum;
}

// One block per token. Of equal logits the lower expert comes first.
template <class Act>
__device__ void route(const Routing& in, unsigned char* memory) {
  float *logits = reinterpret_cast<float*>(memory), *best = logits + in.experts, *partial = best + in.chosen;
  int *expert = reinterpret_cast<int*>(partial + blockDim.x / 32), *slot_of = expert + in.chosen;
  const int row = blockIdx.x, choices = in.chosen + (in.shared_gate.data != nullptr);
  const size_t at = size_t(row) * choices;
  if (row % in.tokens >= in.n_tokens[row / in.tokens]) {
    for (int i = threadIdx.x; i < choices; i += blockDim.x) in.slot[at + i] = -1, in.weight[at + i] = 0.0f;
    return;
  }
  for (int e = threadIdx.x; e < in.experts; e += blockDim.x) {
    logits[e] = in.logits[size_t(row) * in.experts + e];
    slot_of[e] = in.slot_expert ? -1 : e;
  }
  for (int i = threadIdx.x; i < in.chosen; i += blockDim.x) best[i] = NAN, expert[i] = 0;  // kept if logits are NaN
  __syncthreads();
  for (int s = threadIdx.x; in.slot_expert && s < in.slots; s += blockDim.x) slot_of[in.slot_expert[s]] = s;
  for (int e = threadIdx.x; e < in.experts; e += blockDim.x) {
    int larger = 0;
    for (int other = 0; other < in.experts; ++other)
      larger += logits[other] > logits[e] || (logits[other] == logits[e] && other < e);
    if (larger < in.chosen && logits[e] == logits[e]) best[larger] = logits[e], expert[larger] = e;
  }
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < in.chosen; ++i) sum += expf(best[i] - best[0]);
  for (int i = threadIdx.x; i < in.chosen; i += blockDim.x) {
    in.slot[at + i] = slot_of[expert[i]];
    in.weight[at + i] = expf(best[i] - best[0]) / sum;
  }
  if (!in.shared_gate.data) return;
  const Act* x = static_cast<const Act*>(in.x) + size_t(row) * in.H;
  float gate = 0.0f;
  for (int k = threadIdx.x; k < in.H; k += blockDim.x) gate = fmaf(to_float(x[k]), in.shared_gate[k], gate);
  gate = block_sum(gate, partial);
  if (threadIdx.x == 0) in.slot[at + in.chosen] = in.slots, in.weight[at + in.chosen] = sigmoid(gate);
}

#define ROUTE_KERNEL(Act, suffix)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256) moe_experts_route_##suffix(                                          \
      const Act* x, const float* logits, const int* n_tokens, const int* slot_expert, const void* shared_gate,           \
      int bf16_gate, int* slot, float* weight, int tokens, int experts, int slots, int chosen, int H) {                  \
    begin_dependent();                                                                                                   \
    SHARED_MEMORY(memory);                                                                                               \
    const Routing in = {x, logits, n_tokens, slot_expert, {shared_gate, bf16_gate}, slot, weight, tokens, experts, slots, \
                        chosen, H};                                                                                      \
    route<Act>(in, memory);                                                                                              \
  }                                                                                                                      \
  EXPORT_KERNEL(moe_experts_route_##suffix)
