// Causal depthwise conv of width 4 with SiLU, channels last. README.md has the contract.
//
// A thread owns kLane neighbouring channels (16 bytes) of one slot and slides over `run` tokens with the window
// in registers. Grid (ceil(channels / (kLane * block)), ceil(tokens / run), slots).
// The thread of a slot's first run is the only reader of the old state, and the only writer of the new one.
#include "../common/vector.cuh"

namespace {

constexpr int kTaps = 4;
template <class Act>
constexpr int kLane = 16 / sizeof(Act);

template <class Act>
struct Conv {
  const Act* x;      // [B, T, C]
  Parameter weight;  // [C, 1, 4]
  Act* state;        // [B, 3, C], the last three raw inputs, oldest first
  const int* n_commit;
  Act* y;
  int tokens, channels, run;
};

template <class Act>
struct Window {
  static constexpr int N = kLane<Act>;
  float weight[N][kTaps], at[3][N];

  __device__ __forceinline__ void push(const float (&x)[N]) {
#pragma unroll
    for (int c = 0; c < N; ++c) at[0][c] = at[1][c], at[1][c] = at[2][c], at[2][c] = x[c];
  }
  __device__ __forceinline__ void convolve(const float (&x)[N], float (&y)[N]) const {
#pragma unroll
    for (int c = 0; c < N; ++c) {
      const float sum = weight[c][0] * at[0][c] + weight[c][1] * at[1][c] + weight[c][2] * at[2][c] + weight[c][3] * x[c];
      y[c] = sum * sigmoid(sum);
    }
  }
};

// Row t of concat(state, x): t = -3, -2, -1 are the state's.
template <class Act, int N>
__device__ __forceinline__ void load_row(const Act* state, const Act* x, int t, int channels, float (&to)[N]) {
  load(t < 0 ? state + size_t(t + 3) * channels : x + size_t(t) * channels, to);
}

template <class Act>
__device__ void run(const Conv<Act>& in) {
  constexpr int N = kLane<Act>;
  const int channel = (blockIdx.x * blockDim.x + threadIdx.x) * N, slot = blockIdx.z;
  if (channel >= in.channels) return;
  const int commit = min(in.n_commit[slot], in.tokens), first = blockIdx.y * in.run;
  const Act* x = in.x + size_t(slot) * in.tokens * in.channels + channel;
  Act* y = in.y + size_t(slot) * in.tokens * in.channels + channel;
  Act* state = in.state + size_t(slot) * 3 * in.channels + channel;

  Window<Act> window;
#pragma unroll
  for (int c = 0; c < N; ++c) in.weight.get((channel + c) * kTaps, window.weight[c]);
#pragma unroll
  for (int i = 0; i < 3; ++i) load_row(state, x, first - 3 + i, in.channels, window.at[i]);

  if (blockIdx.y == 0 && commit) {
    float last[3][N];
#pragma unroll
    for (int i = 0; i < 3; ++i) load_row(state, x, commit - 3 + i, in.channels, last[i]);
#pragma unroll
    for (int i = 0; i < 3; ++i) store(state + size_t(i) * in.channels, last[i]);
  }
  for (int t = first; t < min(first + in.run, in.tokens); ++t) {
    float now[N], out[N];
    load(x + size_t(t) * in.channels, now);
    window.convolve(now, out);
    window.push(now);
    store(y + size_t(t) * in.channels, out);
  }
}

}  // namespace

#define CONV_KERNEL(Act, suffix)                                                                                  \
  extern "C" __global__ void __launch_bounds__(128) causal_conv1d_##suffix(                                       \
      const Act* x, const void* weight, int bf16_parameters, Act* state, const int* n_commit, Act* y, int tokens, \
      int channels, int run_tokens) {                                                                             \
    begin_dependent();                                                                                            \
    run<Act>({x, {weight, bf16_parameters}, state, n_commit, y, tokens, channels, run_tokens});                   \
  }                                                                                                               \
  EXPORT_KERNEL(causal_conv1d_##suffix)

CONV_KERNEL(float, f32)
CONV_KERNEL(bf16, bf16)
