// Gated delta rule for T <= 8 tokens: decode, and verify with deferred commit. README.md has the math.
//
// One warp owns 8 value columns of one (slot, value head) and keeps S [KEY_DIM, 8] in registers: lane =
// 2 * key_group + column_group holds rows key_group * kRows .. + kRows and 4 columns. Everything a token needs
// besides S is staged in shared memory while S is on its way. Warps never wait for each other after that.
// Grid (value_dim / (8 * warps), value heads, slots); any number of warps.
#include "../common/warp.cuh"
#include "gates.cuh"

#ifndef KEY_DIM
#define KEY_DIM 128
#endif

namespace {

constexpr int kKeyDim = KEY_DIM, kRows = KEY_DIM / 16, kColumns = 8;
constexpr int kKeysPerLane = KEY_DIM >= 32 ? KEY_DIM / 32 : 1, kKeyLanes = KEY_DIM / kKeysPerLane;

// What one token needs, besides k and q: decay exp(g), beta, and k.q.
struct Token {
  float decay, beta, kq, unused;
};

template <class Act>
struct Inputs {
  const Act *qkv, *a, *b;
  Parameter A_log, dt_bias;
  float* S;
  const int* n_tokens;
  Act* o;
  int tokens, key_heads, value_heads, value_dim;
};

// The capsule: what a step leaves behind so that the next one can replay its accepted tokens.
struct Capsule {
  const float *k, *u, *g;
  const int* n_commit;
  float *k_out, *u_out, *g_out;
  int tokens;
};

struct Shared {
  float *k, *q, *v;          // [T, KEY_DIM], [T, KEY_DIM], [T, columns of the block]
  float *old_k, *old_u;      // [Tc, KEY_DIM], [Tc, columns of the block]
  Token* token;              // [T]
  float* old_decay;          // [Tc]
  __device__ Shared(unsigned char* base, int T, int Tc, int columns) {
    k = reinterpret_cast<float*>(base);
    q = k + T * kKeyDim;
    old_k = q + T * kKeyDim;
    v = old_k + Tc * kKeyDim;
    old_u = v + T * columns;
    token = reinterpret_cast<Token*>(old_u + Tc * columns);
    old_decay = reinterpret_cast<float*>(token + T);
  }
};

template <class Act>
struct Head {
  int slot, head, key_head, columns, first_column, lane, warp, column, n, qkv_width;
  __device__ Head(const Inputs<Act>& in) {
    columns = blockDim.x / 32 * kColumns;
    slot = blockIdx.z, head = blockIdx.y, key_head = head / (in.value_heads / in.key_heads);
    first_column = blockIdx.x * columns;
    lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    column = warp * kColumns + (lane & 1) * 4;  // within the block
    n = min(in.n_tokens[slot], in.tokens);
    qkv_width = 2 * in.key_heads * kKeyDim + in.value_heads * in.value_dim;
  }
};

// One warp per token: l2norm of k and q, their product, and the gates; zeros for tokens that don't count.
template <bool Verify, class Act>
__device__ void stage_token(const Inputs<Act>& in, const Capsule& capsule, const Head<Act>& at, Shared& shared, int t) {
  const Act* row = in.qkv + size_t(at.slot * in.tokens + t) * at.qkv_width;
  float q[kKeysPerLane] = {}, k[kKeysPerLane] = {};
  const int first = at.lane * kKeysPerLane;
  if (t < at.n && at.lane < kKeyLanes) {
    load(row + at.key_head * kKeyDim + first, q);
    load(row + (in.key_heads + at.key_head) * kKeyDim + first, k);
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
  const int gate = (at.slot * in.tokens + t) * in.value_heads + at.head;
  float g = 0, beta = 0;
  if (t < at.n) {
    g = log_decay(to_float(in.a[gate]), in.A_log[at.head], in.dt_bias[at.head]);
    beta = sigmoid(to_float(in.b[gate]));
  }
  if (at.lane == 0) shared.token[t] = {expf(g), beta, kq, 0};
  if constexpr (Verify) {
    if (blockIdx.x) return;
    if (at.lane == 0) capsule.g_out[gate] = g;
    if (at.head % (in.value_heads / in.key_heads) == 0 && at.lane < kKeyLanes)
      store(capsule.k_out + (size_t(at.slot * in.tokens + t) * in.key_heads + at.key_head) * kKeyDim + first, k);
  }
}

template <class Act>
__device__ void stage_values(const Inputs<Act>& in, const Head<Act>& at, Shared& shared) {
  for (int i = threadIdx.x; i < in.tokens * at.columns; i += blockDim.x) {
    const int t = i / at.columns, c = i % at.columns;
    const Act* row = in.qkv + size_t(at.slot * in.tokens + t) * at.qkv_width + 2 * in.key_heads * kKeyDim;
    shared.v[i] = t < at.n ? to_float(row[at.head * in.value_dim + at.first_column + c]) : 0.0f;
  }
}

template <class Act>
__device__ void stage_capsule(const Inputs<Act>& in, const Capsule& old, const Head<Act>& at, Shared& shared, int commit) {
  for (int i = threadIdx.x; i < commit * kKeyDim; i += blockDim.x) {
    const int row = (at.slot * old.tokens + i / kKeyDim) * in.key_heads + at.key_head;
    shared.old_k[i] = old.k[size_t(row) * kKeyDim + i % kKeyDim];
  }
  for (int i = threadIdx.x; i < commit * at.columns; i += blockDim.x) {
    const int row = (at.slot * old.tokens + i / at.columns) * in.value_heads + at.head;
    shared.old_u[i] = old.u[size_t(row) * in.value_dim + at.first_column + i % at.columns];
  }
  if (int(threadIdx.x) < commit)
    shared.old_decay[threadIdx.x] =
        expf(old.g[(at.slot * old.tokens + threadIdx.x) * in.value_heads + at.head]);
}

// S = decay S + k u^T
__device__ __forceinline__ void update(float (&S)[kRows][4], float decay, const float (&k)[kRows], const float (&u)[4]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) S[i][c] = decay * S[i][c] + k[i] * u[c];
}

// One token: u = (v - decay k^T S) beta, o = decay q^T S + (k.q) u, then the update. Returns u or o of one
// column to the lanes that own it: lane bit 4 says which of the two, bits 3, 2 and 0 the column.
__device__ __forceinline__ float step(float (&S)[kRows][4], const Shared& shared, const Token& token, int t, int columns,
                                      int column, int lane) {
  float k[kRows], q[kRows], sums[8] = {};
  load(shared.k + t * kKeyDim + lane / 2 * kRows, k);
  load(shared.q + t * kKeyDim + lane / 2 * kRows, q);
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[c] += k[i] * S[i][c], sums[4 + c] += q[i] * S[i][c];
  float sum = reduce_scatter<8, 16>(sums);  // (k^T S or q^T S) of column lane / 4 % 4
  sum += __shfl_xor_sync(kFullWarp, sum, 2);
  const float v = shared.v[t * columns + column + lane / 4 % 4];
  const float mine = (v - token.decay * sum) * token.beta;  // meaningful in lanes 0..15
  float u[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) u[c] = __shfl_sync(kFullWarp, mine, c * 4 + (lane & 1));
  const float my_u = __shfl_sync(kFullWarp, mine, lane & 15);
  update(S, token.decay, k, u);
  return lane < 16 ? my_u : token.decay * sum + token.kq * my_u;
}

template <bool Verify, class Act>
__device__ void run(const Inputs<Act>& in, const Capsule& capsule) {
  SHARED_MEMORY(memory);
  const Head<Act> at(in);
  Shared shared(memory, in.tokens, Verify ? capsule.tokens : 0, at.columns);
  float* tile = in.S + (size_t(at.slot * in.value_heads + at.head) * kKeyDim + at.lane / 2 * kRows) * in.value_dim +
                at.first_column + at.column;
  float S[kRows][4];
#pragma unroll
  for (int i = 0; i < kRows; ++i) load(tile + size_t(i) * in.value_dim, S[i]);

  const int commit = Verify ? min(capsule.n_commit[at.slot], capsule.tokens) : 0;
  for (int t = at.warp; t < in.tokens; t += blockDim.x / 32) stage_token<Verify>(in, capsule, at, shared, t);
  stage_values(in, at, shared);
  if constexpr (Verify) stage_capsule(in, capsule, at, shared, commit);
  __syncthreads();

  if constexpr (Verify) {
    for (int t = 0; t < commit; ++t) {
      float k[kRows], u[4];
      load(shared.old_k + t * kKeyDim + at.lane / 2 * kRows, k);
      load(shared.old_u + t * at.columns + at.column, u);
      update(S, shared.old_decay[t], k, u);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (commit) store(tile + size_t(i) * in.value_dim, S[i]);
  }
  const int own_column = at.first_column + at.column + at.lane / 4 % 4;
  for (int t = 0; t < in.tokens; ++t) {
    float out = 0;  // u in lanes 0..15, o in the others
    if (t < at.n) out = step(S, shared, shared.token[t], t, at.columns, at.column, at.lane);
    const size_t row = size_t(at.slot * in.tokens + t) * in.value_heads + at.head;
    if (at.lane & 2) continue;
    if (at.lane >= 16) in.o[row * in.value_dim + own_column] = from_float<Act>(out);
    if (Verify && at.lane < 16) capsule.u_out[row * in.value_dim + own_column] = out;
  }
  if constexpr (!Verify) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) store(tile + size_t(i) * in.value_dim, S[i]);
  }
}

}  // namespace

#define DECODE_INPUTS(Act)                                                                                       \
  const Act *qkv, const Act *a, const Act *b, const void *A_log, const void *dt_bias, int bf16_parameters,       \
      float *S, const int *n_tokens, Act *o, int tokens, int key_heads, int value_heads, int value_dim
#define DECODE_FORWARD                                                                                           \
  {qkv, a, b, {A_log, bf16_parameters}, {dt_bias, bf16_parameters}, S, n_tokens, o, tokens, key_heads,           \
   value_heads, value_dim}

#define DECODE_KERNELS(Act, suffix)                                                                              \
  extern "C" __global__ void __launch_bounds__(256) gated_delta_rule_decode_##suffix(DECODE_INPUTS(Act)) {       \
    run<false, Act>(DECODE_FORWARD, {});                                                                         \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(256) gated_delta_rule_verify_##suffix(                            \
      DECODE_INPUTS(Act), const float* k, const float* u, const float* g, const int* n_commit, float* k_out,     \
      float* u_out, float* g_out, int capsule_tokens) {                                                          \
    run<true, Act>(DECODE_FORWARD, {k, u, g, n_commit, k_out, u_out, g_out, capsule_tokens});                    \
  }                                                                                                              \
  EXPORT_KERNEL(gated_delta_rule_decode_##suffix)                                                                \
  EXPORT_KERNEL(gated_delta_rule_verify_##suffix)

DECODE_KERNELS(float, f32)
DECODE_KERNELS(bf16, bf16)
