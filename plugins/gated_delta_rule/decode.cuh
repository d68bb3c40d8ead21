// Gated delta rule for T <= 8 tokens, of which the first n_commit change S. README.md has the math.
//
// One warp owns W = 8 or 16 value columns of one (slot, value head) and keeps S [KEY_DIM, W] in registers: lane =
// key_group * (W / 4) + column_group holds KEY_DIM * W / 128 neighbouring rows and 4 columns, so a row of the tile is
// one or two memory sectors. Everything a token needs besides S is staged in shared memory while S is on its way, and
// no load waits for another.
// Warps never wait for each other after that. Grid (value_dim / (W * warps), value heads, slots).
#pragma once
#include "../common/tensor_core.cuh"
#include "../common/warp.cuh"
#include "gates.cuh"

#ifndef KEY_DIM
#define KEY_DIM 128
#endif

namespace {

constexpr int kKeyDim = KEY_DIM;
template <int W>
constexpr int kRows = KEY_DIM * W / 128;
constexpr int kKeysPerLane = KEY_DIM >= 32 ? KEY_DIM / 32 : 1, kKeyLanes = KEY_DIM / kKeysPerLane;

// What one token needs, besides k and q: decay exp(g), beta, and k.q.
struct Token {
  float decay, beta, kq, unused;
};

template <class Act>
struct Inputs {
  const Act *a, *b;
  Parameter A_log, dt_bias;
  float* S;
  const int *n_tokens, *n_commit;
  int tokens, key_heads, value_heads, value_dim;
};

template <class Act>
struct Shared {
  float *k, *q;  // [T, KEY_DIM] each
  Act* v;        // [T, columns of the block]
  Token* token;  // [T]
  __device__ Shared(unsigned char* base, int T, int columns) {
    k = reinterpret_cast<float*>(base);
    q = k + T * kKeyDim;
    v = reinterpret_cast<Act*>(q + T * kKeyDim);
    token = reinterpret_cast<Token*>(v + T * columns);
  }
};

template <int W, class Act>
struct Head {
  int slot, head, key_head, columns, first_column, lane, warp, first_row, column, n, commit, qkv_width;
  __device__ Head(const Inputs<Act>& in) {
    columns = blockDim.x / 32 * W;
    slot = blockIdx.z, head = blockIdx.y, key_head = head / (in.value_heads / in.key_heads);
    first_column = blockIdx.x * columns;
    lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    first_row = lane / (W / 4) * kRows<W>;
    column = warp * W + lane % (W / 4) * 4;  // within the block
    n = min(in.n_tokens[slot], in.tokens);
    commit = min(in.n_commit[slot], n);
    qkv_width = 2 * in.key_heads * kKeyDim + in.value_heads * in.value_dim;
  }
};

// What the gates of a token are made of, as it lies in memory.
struct Raw {
  float a, b, A_log, dt_bias;
};

template <int W, class Act>
__device__ __forceinline__ Raw load_gates(const Inputs<Act>& in, const Head<W, Act>& at, int t) {
  if (t >= in.tokens) return {};
  const int gate = (at.slot * in.tokens + t) * in.value_heads + at.head;
  return {to_float(in.a[gate]), to_float(in.b[gate]), in.A_log[at.head], in.dt_bias[at.head]};
}

// One warp per token: l2norm of k and q, their product, and the gates; zeros for tokens that don't count. What
// memory holds is read whether it counts or not, so that no load waits for n_tokens.
template <int W, class Act, class Source>
__device__ void stage_token(const Inputs<Act>& in, const Source& qkv, const Head<W, Act>& at, Shared<Act>& shared, int t,
                            const Raw& raw) {
  float q[kKeysPerLane] = {}, k[kKeysPerLane] = {};
  const int first = at.lane * kKeysPerLane;
  if (at.lane < kKeyLanes) qkv.read(in, at, shared, t, first, q, k);
  float g = log_decay(raw.a, raw.A_log, raw.dt_bias), beta = sigmoid(raw.b);
  if (t >= at.n) {
    g = beta = 0;
#pragma unroll
    for (int i = 0; i < kKeysPerLane; ++i) q[i] = k[i] = 0;
  }
  float qq = 0, kk = 0, kq = 0;
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) qq += q[i] * q[i], kk += k[i] * k[i], kq += k[i] * q[i];
  const float q_scale = rsqrtf(warp_sum(qq) + kNormEpsilon) * rsqrtf(float(kKeyDim));
  const float k_scale = rsqrtf(warp_sum(kk) + kNormEpsilon);
  kq = warp_sum(kq) * q_scale * k_scale;
#pragma unroll
  for (int i = 0; i < kKeysPerLane; ++i) q[i] *= q_scale, k[i] *= k_scale;
  if (at.lane < kKeyLanes) {
    store(shared.q + t * kKeyDim + first, q);
    store(shared.k + t * kKeyDim + first, k);
  }
  if (at.lane == 0) shared.token[t] = {expf(g), beta, kq, 0};
}

// The channel of the block's first column of v.
template <int W, class Act>
__device__ __forceinline__ int first_value(const Inputs<Act>& in, const Head<W, Act>& at) {
  return 2 * in.key_heads * kKeyDim + at.head * in.value_dim + at.first_column;
}

// Copies rows of `width` values, `stride` apart, to shared memory in the background.
template <class T>
__device__ __forceinline__ void copy_rows(T* to, const T* from, int rows, int width, int stride) {
  constexpr int kPack = 16 / sizeof(T);
  const int packs = width / kPack;
  for (int i = threadIdx.x; i < rows * packs; i += blockDim.x) {
    const int row = i / packs, column = i % packs * kPack;
    copy_async(to + row * width + column, from + size_t(row) * stride + column, true);
  }
}

// Where a block's q, k and v come from: memory, as they are.
template <class Act>
struct Stored {
  const Act* qkv;  // [B, T, width]
  // v of all tokens is on its way to shared memory when this returns.
  template <int W>
  __device__ __forceinline__ void start(const Inputs<Act>& in, const Head<W, Act>& at, Shared<Act>& shared) const {
    const Act* from = qkv + size_t(at.slot) * in.tokens * at.qkv_width + first_value(in, at);
    copy_rows(shared.v, from, in.tokens, at.columns, at.qkv_width);
  }
  // Elements of q and k from `first` on.
  template <int W, int N>
  __device__ __forceinline__ void read(const Inputs<Act>& in, const Head<W, Act>& at, const Shared<Act>&, int t, int first,
                                       float (&q)[N], float (&k)[N]) const {
    const Act* row = qkv + size_t(at.slot * in.tokens + t) * at.qkv_width;
    load(row + at.key_head * kKeyDim + first, q);
    load(row + (in.key_heads + at.key_head) * kKeyDim + first, k);
  }
};

// S = decay S + k u^T
template <int R>
__device__ __forceinline__ void update(float (&S)[R][4], float decay, const float (&k)[R], const float (&u)[4]) {
#pragma unroll
  for (int i = 0; i < R; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) S[i][c] = decay * S[i][c] + k[i] * u[c];
}

// One token: u = (v - decay k^T S) beta, o = decay q^T S + (k.q) u, then the update. Lanes 16..31 return o of their
// column of four, which bits 3 and 2 of the lane number.
template <int W, class Act>
__device__ __forceinline__ float step(float (&S)[kRows<W>][4], const Shared<Act>& shared,
                                      const Head<W, Act>& at, int t) {
  const Token token = shared.token[t];
  float k[kRows<W>], q[kRows<W>], sums[8] = {};
  load(shared.k + t * kKeyDim + at.first_row, k);
  load(shared.q + t * kKeyDim + at.first_row, q);
#pragma unroll
  for (int i = 0; i < kRows<W>; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[c] += k[i] * S[i][c], sums[4 + c] += q[i] * S[i][c];
  float sum = reduce_scatter<8, 16>(sums);  // k^T S or q^T S
  if constexpr (W == 8) sum += __shfl_xor_sync(kFullWarp, sum, 2);
  const float v = to_float(shared.v[t * at.columns + at.column + at.lane / 4 % 4]);
  const float mine = (v - token.decay * sum) * token.beta;  // meaningful in lanes 0..15
  float u[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) u[c] = __shfl_sync(kFullWarp, mine, c * 4 + at.lane % (W / 4));
  const float my_u = __shfl_sync(kFullWarp, mine, at.lane & 15);
  update(S, token.decay, k, u);
  return token.decay * sum + token.kq * my_u;
}

// Row t of the block's o goes to o + t * stride.
template <int W, class Act, class Source>
__device__ __forceinline__ void run(const Inputs<Act>& in, Source& qkv, const Head<W, Act>& at, Shared<Act>& shared,
                                    Act* o, int stride) {
  float* tile = in.S + (size_t(at.slot * in.value_heads + at.head) * kKeyDim + at.first_row) * in.value_dim +
                at.first_column + at.column;
  float S[kRows<W>][4];
#pragma unroll
  for (int i = 0; i < kRows<W>; ++i) load(tile + size_t(i) * in.value_dim, S[i]);
  const Raw first = load_gates(in, at, at.warp);
  qkv.start(in, at, shared);
  commit_copies();

  for (int t = at.warp; t < in.tokens; t += blockDim.x / 32)
    stage_token(in, qkv, at, shared, t, t == at.warp ? first : load_gates(in, at, t));
  wait_copies<0>();
  __syncthreads();

  o += at.column + at.lane / 4 % 4;
  for (int t = 0; t < in.tokens; ++t) {
    float mine = 0;
    if (t < at.n) mine = step(S, shared, at, t);
    if (t + 1 == at.commit) {  // what follows are drafts: they go on in registers
#pragma unroll
      for (int i = 0; i < kRows<W>; ++i) store(tile + size_t(i) * in.value_dim, S[i]);
    }
    if (at.lane >= 16 && (W == 16 || !(at.lane & 2))) o[size_t(t) * stride] = from_float<Act>(mine);
  }
}

// Where the block's first o belongs, of rows of value_heads * value_dim.
template <int W, class Act, class T>
__device__ __forceinline__ T* first_output(const Inputs<Act>& in, const Head<W, Act>& at, T* o) {
  return o + (size_t(at.slot) * in.tokens * in.value_heads + at.head) * in.value_dim + at.first_column;
}

}  // namespace
