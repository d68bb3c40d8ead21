// The gated delta rule for T <= 8 tokens as in decode.cu, and behind it, in the same block, y = weight * o / rms(o) *
// silu(z): a launch less for a layer. A block owns a value head, all of its columns, so nothing is waited for.
//
// o is rounded as it would be in memory, and a head's norm is that of gated_rms_norm: y is its two parts' to the bit.
// Grid (1, value heads, slots), value_dim / 16 warps.
#include "../gated_rms_norm/norm.cuh"
#include "decode.cuh"

namespace {

constexpr int kColumns = 16, kMostWarps = 8;  // value_dim up to 128

// Behind what the delta rule has in shared memory.
template <class Act>
struct Gate {
  Act *z, *o;             // [T, value_dim] each
  unsigned char* weight;  // [value_dim]
  __device__ Gate(const Shared<Act>& before, int T, int columns) {
    z = reinterpret_cast<Act*>(before.token + T);
    o = z + T * columns;
    weight = reinterpret_cast<unsigned char*>(o + T * columns);
  }
};

template <class Act>
struct Norm {
  const Act* z;      // [B, T, value heads, value_dim], as y
  Parameter weight;  // [value_dim]
  Act* y;
  float epsilon;
};

template <class Act>
__device__ void run_normed(const Inputs<Act>& in, const Norm<Act>& norm) {
  SHARED_MEMORY(memory);
  const Head<kColumns, Act> at(in);
  Shared<Act> shared(memory, in.tokens, at.columns);
  const Gate<Act> gate(shared, in.tokens, at.columns);
  const int width = in.value_heads * in.value_dim, weight_bytes = in.value_dim * (norm.weight.is_bf16 ? 2 : 4);
  copy_rows(gate.z, first_output(in, at, norm.z), in.tokens, in.value_dim, width);
  copy_rows(gate.weight, static_cast<const unsigned char*>(norm.weight.data), 1, weight_bytes, 0);
  run(in, at, shared, gate.o, in.value_dim);
  __syncthreads();  // the head's columns are there
  Act* y = first_output(in, at, norm.y);
  const Parameter weight = {gate.weight, norm.weight.is_bf16};
  for (int t = at.warp; t < in.tokens; t += blockDim.x / 32) {
    const Act *o = gate.o + t * in.value_dim, *z = gate.z + t * in.value_dim;
    Act* to = y + size_t(t) * width;
    if (t < at.n)
      norm_head<1>(GatedNorm<Act>{o, z, weight, to, in.value_dim, norm.epsilon});
    else
      for (int i = at.lane; i < in.value_dim; i += 32) to[i] = from_float<Act>(0.0f);
  }
}

}  // namespace

#define DECODE_NORM_KERNEL(Act, suffix)                                                                          \
  extern "C" __global__ void __launch_bounds__(32 * kMostWarps, 2) gated_delta_rule_norm_##suffix(               \
      const Act* qkv, const Act* a, const Act* b, const void* A_log, const void* dt_bias, int bf16_A_log,        \
      int bf16_dt_bias, float* S, const int* n_tokens, const int* n_commit, const Act* z, const void* weight,    \
      int bf16_weight, Act* y, int tokens, int key_heads, int value_heads, int value_dim, float epsilon) {       \
    begin_dependent();                                                                                           \
    run_normed<Act>({qkv, a, b, {A_log, bf16_A_log}, {dt_bias, bf16_dt_bias}, S, n_tokens, n_commit, tokens,     \
                     key_heads, value_heads, value_dim},                                                         \
                    {z, {weight, bf16_weight}, y, epsilon});                                                     \
  }                                                                                                              \
  EXPORT_KERNEL(gated_delta_rule_norm_##suffix)

DECODE_NORM_KERNEL(float, f32)
DECODE_NORM_KERNEL(bf16, bf16)
