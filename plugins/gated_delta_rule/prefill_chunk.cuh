// Prefill, first kernel: everything of a chunk that does not depend on S, for all chunks at once.
//
// One block per (chunk, key head, slot), one warp per 16 tokens: K K^T and Q K^T on tensor cores, shared by the
// key head's value heads; then, for each of those, A and T' = (I + L)^-1 diag(beta), L = tril(diag(beta) K K^T o D, -1).
// The inverse is by substitution within 16x16 blocks and a block merge, in f32.
#pragma once
#include "prefill.cuh"

// A running sum of log decays in two floats: a chunk may forget everything (G = -1000) and then remember again,
// and the differences of G that follow must not carry the rounding of the large part.
struct LogSum {
  float high, low;
  __device__ __forceinline__ LogSum operator+(LogSum y) const {
    const float sum = high + y.high, other = sum - high;
    return {sum, (high - (sum - other)) + (y.high - other) + (low + y.low)};
  }
  // exp(this - y)
  __device__ __forceinline__ float over(LogSum y) const { return expf((high - y.high) + (low - y.low)); }
};

template <class Act, int C>
struct ChunkKernel {
  static constexpr int kBlocks = C / 16, kStride = C + 4, kPerLane = kKeyDim >= 32 ? kKeyDim / 32 : 1;
  static constexpr int kTokensPerLane = C / 32;
  using P = Planes<Act>;

  const Prefill<Act>& in;
  int lane, warp, chunk, key_head, slot, group, live;
  Tile K, Q;                                 // dead once the products are in registers,
  float *L, *X;                              // which then live in the same place
  LogSum* G;                                 // [group, C]
  float *k_scale, *q_scale, *beta;           // [C], [C], [group, C]

  __device__ ChunkKernel(const Prefill<Act>& in, unsigned char* memory)
      : in(in), lane(threadIdx.x % 32), warp(threadIdx.x / 32), chunk(blockIdx.x), key_head(blockIdx.y),
        slot(blockIdx.z), group(in.value_heads / in.key_heads), live(min(in.live(slot) - chunk * C, C)) {
    G = reinterpret_cast<LogSum*>(memory);
    k_scale = reinterpret_cast<float*>(G + group * C);
    q_scale = k_scale + C;
    beta = q_scale + C;
    L = beta + group * C;
    X = L + C * kStride;
    K = {reinterpret_cast<bf16*>(L), C, kKeyDim};
    Q = {K.data + P::kInput * C * K.stride(), C, kKeyDim};
  }

  __device__ int token() const { return in.first + chunk * C; }

  // One row of q or k into its planes; returns its inverse norm.
  __device__ float load_row(const Tile& tile, int row, int channel) {
    float x[kPerLane] = {}, squares = 0;
    const int first = lane * kPerLane;
    if (row < live && first < kKeyDim) load(in.row(slot, token() + row) + channel + first, x);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) squares += x[i] * x[i];
#pragma unroll
    for (int p = 0; p < P::kInput; ++p) {
      if (first < kKeyDim) store(tile.at(p, row, first), x);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) x[i] -= to_float(from_float<bf16>(x[i]));
    }
    return rsqrtf(warp_sum(squares) + kNormEpsilon);
  }

  __device__ void load_keys() {
#pragma unroll 4
    for (int row = warp * 16; row < warp * 16 + 16; ++row) {
      const float k = load_row(K, row, (in.key_heads + key_head) * kKeyDim), q = load_row(Q, row, key_head * kKeyDim);
      if (lane == 0) k_scale[row] = k, q_scale[row] = q * rsqrtf(float(kKeyDim));
    }
  }

  // G and beta of one value head, by one warp; a lane has kTokensPerLane neighbouring tokens.
  __device__ void load_gates(int i) {
    const int head = key_head * group + i;
    const float A_log = in.A_log[head], dt_bias = in.dt_bias[head];
    LogSum g[kTokensPerLane];
#pragma unroll
    for (int j = 0; j < kTokensPerLane; ++j) {
      const int t = lane * kTokensPerLane + j;
      const size_t at = (size_t(slot) * in.tokens + token() + t) * in.value_heads + head;
      beta[i * C + t] = t < live ? sigmoid(to_float(in.b[at])) : 0.0f;
      g[j] = {t < live ? log_decay(to_float(in.a[at]), A_log, dt_bias) : 0.0f, 0.0f};
      if (j) g[j] = g[j - 1] + g[j];
    }
    LogSum upto = g[kTokensPerLane - 1];  // of this lane and those before it
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const LogSum other = {__shfl_up_sync(kFullWarp, upto.high, delta), __shfl_up_sync(kFullWarp, upto.low, delta)};
      if (lane >= delta) upto = other + upto;
    }
    LogSum before = {__shfl_up_sync(kFullWarp, upto.high, 1), __shfl_up_sync(kFullWarp, upto.low, 1)};
    if (lane == 0) before = {0, 0};
#pragma unroll
    for (int j = 0; j < kTokensPerLane; ++j) G[i * C + lane * kTokensPerLane + j] = before + g[j];
  }

  // This warp's 16 rows of K K^T and Q K^T, for the columns up to its own.
  __device__ void products(float (&kk)[C / 8][4], float (&qk)[C / 8][4]) {
#pragma unroll
    for (int k = 0; k < kKeyDim; k += 16)
#pragma unroll
      for (int p = 0; p < P::kInput; ++p)
#pragma unroll
        for (int tile = 0; tile < kBlocks; ++tile) {
          if (tile > warp) continue;
          BfPair b[1][4];
          K.template read<false, false>(b[0], p, tile * 16, k);
#pragma unroll
          for (int n = 0; n + p < P::kInput; ++n) {
            multiply<1>(kk + 2 * tile, Operand<1>(K, n, warp * 16, k), b, 0);
            multiply<1>(qk + 2 * tile, Operand<1>(Q, n, warp * 16, k), b, 0);
          }
        }
  }

  // L to shared memory and A to the workspace, from the products of this warp's rows.
  __device__ void write_head(int i, const float (&kk)[C / 8][4], const float (&qk)[C / 8][4], bf16* A) {
    const LogSum* g = G + i * C;
    const float* b = beta + i * C;
#pragma unroll
    for (int tile = 0; tile < C / 8; ++tile) {
      if (tile / 2 > warp) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * 16 + half * 8 + lane / 4, column = tile * 8 + lane % 4 * 2;
        float a[2], l[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = column + e;
          const float decay = row >= j ? g[row].over(g[j]) * k_scale[j] : 0.0f;
          a[e] = q_scale[row] * decay * qk[tile][2 * half + e];
          l[e] = row > j ? b[row] * k_scale[row] * decay * kk[tile][2 * half + e] : 0.0f;
        }
        store(L + row * kStride + column, l);
        store_planes(A, row, column, a);
      }
    }
  }

  __device__ void store_planes(bf16* to, int row, int column, const float (&x)[2]) {
    BfPair parts[P::kState];
    split<P::kState>(x[0], x[1], parts);
#pragma unroll
    for (int p = 0; p < P::kState; ++p) *reinterpret_cast<BfPair*>(to + (p * C + row) * C + column) = parts[p];
  }

  // Column `threadIdx.x` of the inverse of its diagonal 16x16 block of I + L.
  __device__ void invert_diagonal() {
    if (threadIdx.x >= C) return;
    const int base = threadIdx.x / 16 * 16, column = threadIdx.x % 16;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      x[i] = i == column;
#pragma unroll
      for (int j = 0; j < i; ++j) x[i] -= L[(base + i) * kStride + base + j] * x[j];
      X[(base + i) * kStride + base + column] = x[i];
    }
  }

  // sum_m left[row, m] right[m, 0..3], m < count
  __device__ float4 row_product(const float* left, const float* right, int count) {
    float sum[4] = {};
#pragma unroll 8
    for (int m = 0; m < count; ++m) {
      float x[4];
      load(right + m * kStride, x);
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[c] += left[m] * x[c];
    }
    return {sum[0], sum[1], sum[2], sum[3]};
  }

  // X_ij = -X_ii Y, Y = sum_m L_im X_mj, one block diagonal after the other. Y sits in L's unused upper half.
  __device__ void merge_blocks() {
    for (int d = 1; d < kBlocks; ++d) {
      for (int half = 0; half < 2; ++half) {
        for (int e = threadIdx.x; e < (kBlocks - d) * 64; e += blockDim.x) {
          const int j = e / 64 * 16, i = j + d * 16, r = e % 64 / 4, c = e % 4 * 4;
          float *Y = L + j * kStride + i, *x = X + (i + r) * kStride + j + c;
          if (half == 0) {
            *reinterpret_cast<float4*>(Y + r * kStride + c) =
                row_product(L + (i + r) * kStride + j, X + j * kStride + j + c, d * 16);
          } else {
            const float4 y = row_product(X + (i + r) * kStride + i, Y + c, 16);
            *reinterpret_cast<float4*>(x) = make_float4(-y.x, -y.y, -y.z, -y.w);
          }
        }
        __syncthreads();
      }
    }
  }

  __device__ void write_inverse(const float* beta, bf16* T) {
    for (int e = threadIdx.x; e < C * C / 2; e += blockDim.x) {
      const int row = e / (C / 2), column = e % (C / 2) * 2;
      if (column / 16 > row / 16) continue;
      const float* x = X + row * kStride + column;
      store_planes(T, row, column, {x[0] * beta[column], x[1] * beta[column + 1]});
    }
  }

  __device__ void run() {
    if (live <= 0) return;
    load_keys();
    for (int i = warp; i < group; i += blockDim.x / 32) load_gates(i);
    __syncthreads();
    float kk[C / 8][4] = {}, qk[C / 8][4] = {};
    products(kk, qk);
    const Workspace<Act, C> work(in.workspace, gridDim.z, gridDim.x, in.value_heads);
    for (int i = 0; i < group; ++i) {
      const int item = (slot * gridDim.x + chunk) * in.value_heads + key_head * group + i, t = threadIdx.x;
      __syncthreads();  // the keys, or the last head's matrices, are done with
      write_head(i, kk, qk, work.plane(item, P::kState));
      if (t < C) {
        const LogSum g = G[i * C + t], last = G[i * C + C - 1];
        work.row(item)[t] = {k_scale[t] * expf(g.high), q_scale[t] * expf(g.high), k_scale[t] * last.over(g),
                             expf(last.high)};
      }
      __syncthreads();
      invert_diagonal();
      __syncthreads();
      merge_blocks();
      write_inverse(beta + i * C, work.plane(item, 0));
    }
  }
};
