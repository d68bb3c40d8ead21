// The causal convolution, the gated delta rule for T <= 8 tokens and the gated norm in one launch: two less for a layer.
//
// Each block convolves what it needs, with the sums of causal_conv1d: the v of its value head, and q and k of its key
// head, which the blocks of the other value heads of that key head convolve too. v's state is the block's own; that of
// q and k is rolled by the last of these blocks to have read it. States and weights are asked for before the launches in
// front are done.
#include "../causal_conv1d/taps.cuh"
#include "norm.cuh"

namespace {

// See Stored.
template <class Act>
struct Convolved {
  const Act* x;      // [B, T, width], raw
  Parameter weight;  // [width, 1, 4]
  Act* state;        // [B, 3, width]
  const int* n_commit;
  int* arrived;    // [B, key heads], 0 before and after
  int before = 0;  // how many of the key head's blocks came before, in the last warp's first thread

  typedef ::Head<kColumns, Act> Head;
  __device__ __forceinline__ const Act* inputs(const Inputs<Act>& in, const Head& at, int channel) const {
    return x + size_t(at.slot) * in.tokens * at.qkv_width + channel;
  }
  __device__ __forceinline__ Act* kept(const Head& at, int channel) const {
    return state + size_t(at.slot) * 3 * at.qkv_width + channel;
  }
  // N outputs of token t, as their readers see them.
  template <int N>
  __device__ __forceinline__ void convolve(const Inputs<Act>& in, const Head& at, int t, int channel, float (&y)[N]) const {
    float rows[kTaps][N], taps[N * kTaps];
#pragma unroll
    for (int i = 0; i < kTaps; ++i)
      load_row(kept(at, channel), inputs(in, at, channel), t - 3 + i, at.qkv_width, rows[i]);
    weight.get(channel * kTaps, taps);
#pragma unroll
    for (int c = 0; c < N; ++c)
      y[c] = to_float(from_float<Act>(convolved(taps + c * kTaps, rows[0][c], rows[1][c], rows[2][c], rows[3][c])));
  }
  // A warp makes q, k or v of a token; then they are there for all.
  __device__ __forceinline__ void start(const Inputs<Act>& in, const Head& at, Shared<Act>& shared) {
    for (int task = at.warp; task < 3 * in.tokens; task += blockDim.x / 32) {
      const int t = task / 3, part = task % 3;
      if (part == 2 && at.lane * 4 < at.columns) {
        float v[4];
        convolve(in, at, t, first_value(in, at) + at.lane * 4, v);
        store(shared.v + t * at.columns + at.lane * 4, v);
      } else if (part < 2 && at.lane < kKeyLanes) {
        const int first = at.lane * kKeysPerLane;
        float y[kKeysPerLane];
        convolve(in, at, t, (part * in.key_heads + at.key_head) * kKeyDim + first, y);
        store((part ? shared.k : shared.q) + t * kKeyDim + first, y);
      }
    }
    __syncthreads();  // the block has read its state
    if (threadIdx.x != blockDim.x - 32 || !n_commit[at.slot]) return;
    __threadfence();
    before = atomicAdd(arrived + at.slot * in.key_heads + at.key_head, 1);  // looked at when all else is done
  }
  template <int N>
  __device__ __forceinline__ void read(const Inputs<Act>&, const Head&, const Shared<Act>& shared, int t, int first,
                                       float (&q)[N], float (&k)[N]) const {
    load(shared.q + t * kKeyDim + first, q);
    load(shared.k + t * kKeyDim + first, k);
  }
  // Behind everything else: one warp for v, and one for q and k where all of the key head's blocks have read them.
  __device__ __forceinline__ void roll_state(const Inputs<Act>& in, const Head& at) const {
    const int commit = min(n_commit[at.slot], in.tokens), warps = blockDim.x / 32, column = at.lane * 4;
    if (!commit) return;
    if (at.warp == max(warps - 2, 0) && column < at.columns) roll_channels<4>(in, at, commit, first_value(in, at) + column);
    if (at.warp != warps - 1) return;
    if (__shfl_sync(kFullWarp, before, 0) != in.value_heads / in.key_heads - 1) return;
    __threadfence();
    if (at.lane == 0) arrived[at.slot * in.key_heads + at.key_head] = 0;
    if (at.lane >= kKeyLanes) return;
    const int key = at.key_head * kKeyDim + at.lane * kKeysPerLane;
    roll_channels<kKeysPerLane>(in, at, commit, key);
    roll_channels<kKeysPerLane>(in, at, commit, in.key_heads * kKeyDim + key);
  }
  template <int N>
  __device__ __forceinline__ void roll_channels(const Inputs<Act>& in, const Head& at, int commit, int channel) const {
    roll<N>(kept(at, channel), inputs(in, at, channel), commit, at.qkv_width);
  }
};

// The block's states and weights of the convolution, to the L2.
template <class Act>
__device__ __forceinline__ void ask_ahead(Parameter weight, const Act* conv_state, const float* S, int key_heads,
                                          int value_heads, int value_dim) {
  const int slot = blockIdx.z, head = blockIdx.y, key_head = head / (value_heads / key_heads);
  const int first[] = {key_head * kKeyDim, (key_heads + key_head) * kKeyDim, 2 * key_heads * kKeyDim + head * value_dim};
  const size_t width = size_t(2) * key_heads * kKeyDim + value_heads * value_dim, size = size_t(kKeyDim) * value_dim;
  prefetch_all(S + (size_t(slot) * value_heads + head) * size, size * sizeof(float));
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const size_t channels = part < 2 ? kKeyDim : value_dim, bytes = kTaps * (weight.is_bf16 ? 2 : 4);
    prefetch_all(static_cast<const unsigned char*>(weight.data) + first[part] * bytes, channels * bytes);
#pragma unroll
    for (int row = 0; row < kTaps - 1; ++row)
      prefetch_all(conv_state + (size_t(slot) * (kTaps - 1) + row) * width + first[part], channels * sizeof(Act));
  }
}

}  // namespace

#define CONV_DELTA_NORM_KERNEL(Act, suffix)                                                                        \
  extern "C" __global__ void __launch_bounds__(32 * kMostWarps, 2) gated_delta_rule_conv_norm_##suffix(            \
      const Act* x, const void* conv_weight, int bf16_conv_weight, Act* conv_state, const int* conv_commit,        \
      const Act* a, const Act* b, const void* A_log, const void* dt_bias, int bf16_A_log, int bf16_dt_bias,        \
      float* S, const int* n_tokens, const int* n_commit, const Act* z, const void* weight, int bf16_weight,       \
      Act* y, int tokens, int key_heads, int value_heads, int value_dim, float epsilon, int* arrived) {            \
    ask_ahead({conv_weight, bf16_conv_weight}, conv_state, S, key_heads, value_heads, value_dim);                  \
    prefetch_all(A_log, 4), prefetch_all(dt_bias, 4), prefetch_all(weight, size_t(bf16_weight ? 2 : 4) * value_dim); \
    begin_dependent();                                                                                             \
    SHARED_MEMORY(memory);                                                                                         \
    const Inputs<Act> in = {a, b, {A_log, bf16_A_log}, {dt_bias, bf16_dt_bias}, S, n_tokens, n_commit, tokens,     \
                            key_heads, value_heads, value_dim};                                                    \
    const Head<kColumns, Act> at(in);                                                                              \
    Convolved<Act> source{x, {conv_weight, bf16_conv_weight}, conv_state, conv_commit, arrived};                   \
    run_normed(in, source, Norm<Act>{z, {weight, bf16_weight}, y, epsilon}, at, memory);                           \
    source.roll_state(in, at);                                                                                     \
  }                                                                                                                \
  EXPORT_KERNEL(gated_delta_rule_conv_norm_##suffix)

CONV_DELTA_NORM_KERNEL(float, f32)
CONV_DELTA_NORM_KERNEL(bf16, bf16)
