// Tokens to experts: the k largest logits of each by counting how many are larger, first among 32 neighbours, then among
// the best of all of these; and the weights of its places. Everything from memory is asked for before anything is used.
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

// How many of `count` logits at `from`, those of experts `first`, `first` + 1, ..., come before expert e's. Of equal logits
// the lower expert comes first.
__device__ __forceinline__ int count_larger(const float* from, int first, int count, int e, float mine) {
  int larger = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i) larger += from[i] > mine || (from[i] == mine && first + i < e);
  return larger;
}

// One block per token.
template <class Act>
__device__ void route(const Routing& in, unsigned char* memory) {
  const int groups = (in.experts + 31) / 32, kept = min(in.chosen, 32);  // kept: of 32 experts
  float *logits = reinterpret_cast<float*>(memory), *best = logits + in.experts, *partial = best + in.chosen;
  float* candidate = partial + blockDim.x / 32;  // [groups * kept]
  int *number = reinterpret_cast<int*>(candidate + groups * kept), *expert = number + groups * kept;
  int* slot_of = expert + in.chosen;
  const int row = blockIdx.x, choices = in.chosen + (in.shared_gate.data != nullptr);
  const size_t at = size_t(row) * choices;
  const bool is_there = row % in.tokens < in.n_tokens[row / in.tokens];
  const int own = in.slot_expert && threadIdx.x < in.slots ? in.slot_expert[threadIdx.x] : 0;
  const Act* x = static_cast<const Act*>(in.x) + size_t(row) * in.H;
  float gate = 0.0f;
  for (int k = 8 * threadIdx.x; in.shared_gate.data && k < in.H; k += 8 * blockDim.x) {
    float values[8], weights[8];
    load(x + k, values);
    in.shared_gate.get(k, weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) gate = fmaf(values[i], weights[i], gate);
  }
  for (int e = threadIdx.x; e < in.experts; e += blockDim.x) {
    logits[e] = in.logits[size_t(row) * in.experts + e];
    slot_of[e] = in.slot_expert ? -1 : e;
  }
  if (!is_there) {
    for (int i = threadIdx.x; i < choices; i += blockDim.x) in.slot[at + i] = -1, in.weight[at + i] = 0.0f;
    return;
  }
  for (int i = threadIdx.x; i < groups * kept; i += blockDim.x) number[i] = -1;
  for (int i = threadIdx.x; i < in.chosen; i += blockDim.x) best[i] = NAN, expert[i] = 0;  // kept if logits are NaN
  __syncthreads();
  for (int s = threadIdx.x; in.slot_expert && s < in.slots; s += blockDim.x)
    slot_of[s < blockDim.x ? own : in.slot_expert[s]] = s;
  for (int e = threadIdx.x; e < in.experts; e += blockDim.x) {
    const int first = e / 32 * 32;
    const int larger = count_larger(logits + first, first, min(32, in.experts - first), e, logits[e]);
    if (larger < kept && logits[e] == logits[e]) candidate[e / 32 * kept + larger] = logits[e], number[e / 32 * kept + larger] = e;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < groups * kept; c += blockDim.x) {
    if (number[c] < 0) continue;
    int larger = 0;
#pragma unroll 8
    for (int other = 0; other < groups * kept; ++other)
      larger += number[other] >= 0 && (candidate[other] > candidate[c] || (candidate[other] == candidate[c] && other < c));
    if (larger < in.chosen) best[larger] = candidate[c], expert[larger] = number[c];
  }
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < in.chosen; ++i) sum += expf(best[i] - best[0]);
  for (int i = threadIdx.x; i < in.chosen; i += blockDim.x) {
    in.slot[at + i] = slot_of[expert[i]];
    in.weight[at + i] = expf(best[i] - best[0]) / sum;
  }
  if (!in.shared_gate.data) return;
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
