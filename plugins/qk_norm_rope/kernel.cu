// q, k = RoPE(rms_norm(x) (1 + weight)) per head, and the gate apart from q. README.md has the contract.
//
// A warp per head; turn.cuh does the work.
#include "turn.cuh"

namespace {

template <class Act>
struct Rope {
  const Act *q_gate, *k;  // [rows, heads, 2 D], [rows, kv_heads, D]
  Parameter q_weight, k_weight;
  Turn<Act> turn;
  Act *q, *k_out, *gate;
  int rows, heads, kv_heads, D;
};

template <class Act>
__device__ void run(const Rope<Act>& in) {
  const int all = in.heads + in.kv_heads, lane = threadIdx.x % 32, at = lane * kChannels;
  const int warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, row = warp / all, head = warp % all;
  if (row >= in.rows) return;
  const bool is_q = head < in.heads, live = at < in.D;
  const Act* from = is_q ? in.q_gate + (size_t(row) * in.heads + head) * 2 * in.D
                         : in.k + (size_t(row) * in.kv_heads + head - in.heads) * in.D;
  const size_t to = (is_q ? size_t(row) * in.heads + head : size_t(row) * in.kv_heads + head - in.heads) * in.D;
  float x[kChannels] = {};
  if (live) load(from + at, x);
  in.turn.apply(is_q ? in.q_weight : in.k_weight, row, in.D, x);
  if (!live) return;
  store((is_q ? in.q : in.k_out) + to + at, x);
  if (!is_q) return;
  load(from + in.D + at, x);
  store(in.gate + to + at, x);
}

}  // namespace

#define ROPE_KERNEL(Act, suffix)                                                                                   \
  extern "C" __global__ void __launch_bounds__(128) qk_norm_rope_##suffix(                                         \
      const Act* q_gate, const Act* k, const void* q_weight, const void* k_weight, int bf16_weight, const Act* cos, \
      const Act* sin, Act* q, Act* k_out, Act* gate, int rows, int heads, int kv_heads, int D, int rotary,         \
      float epsilon) {                                                                                             \
    begin_dependent();                                                                                             \
    run<Act>({q_gate, k, {q_weight, bf16_weight}, {k_weight, bf16_weight}, {cos, sin, rotary, epsilon}, q, k_out,  \
              gate, rows, heads, kv_heads, D});                                                                    \
  }                                                                                                                \
  EXPORT_KERNEL(qk_norm_rope_##suffix)

ROPE_KERNEL(float, f32)
ROPE_KERNEL(bf16, bf16)
