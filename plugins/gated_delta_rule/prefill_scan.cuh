// Prefill, second kernel: the recurrence over chunks.
//
// One warp owns 16 value columns of one (slot, value head) and holds S^T [16, KEY_DIM] in registers as mma
// accumulators. Everything is transposed, so that each product's accumulator is the next one's left operand and
// warps exchange nothing. The block's warps share the tiles; bf16 tiles are copied one chunk ahead.
#pragma once
#include "prefill.cuh"

template <class Act, int C>
struct ScanKernel {
  static constexpr int kStages = sizeof(Act) == 2 ? 2 : 1, kMatrices = Workspace<Act, C>::kPlanes;
  static constexpr int kTogether = kKeyDim >= 64 ? 4 : kKeyDim / 16;  // pairs of column tiles in flight
  using P = Planes<Act>;

  const Prefill<Act>& in;
  unsigned char* memory;
  int lane, warp, head, key_head, slot, columns, first_column, live, chunks;
  Workspace<Act, C> work;
  float S[kKeyDim / 8][4];  // S^T: rows are this warp's value columns, columns the key dimension

  struct Stage {
    Tile K, Q, M, V;  // M holds the planes of T', then those of A
    Coefficients* coefficients;
  };

  __device__ ScanKernel(const Prefill<Act>& in, unsigned char* memory)
      : in(in), memory(memory), lane(threadIdx.x % 32), warp(threadIdx.x / 32), head(blockIdx.y),
        key_head(head / (in.value_heads / in.key_heads)), slot(blockIdx.z), columns(blockDim.x / 2),
        first_column(blockIdx.x * columns), live(in.live(slot)), chunks((in.count + C - 1) / C),
        work(in.workspace, gridDim.z, chunks, in.value_heads) {}

  __device__ Stage stage(int chunk) const {
    Stage s;
    s.K = {nullptr, C, kKeyDim};
    s.V = {nullptr, C, columns};
    s.M = {nullptr, C, C};
    const int keys = P::kInput * C * s.K.stride(), matrices = kMatrices * C * s.M.stride();
    const int values = P::kInput * C * s.V.stride();
    const size_t bytes = (2 * keys + matrices + values) * sizeof(bf16) + C * sizeof(Coefficients);
    unsigned char* base = memory + chunk % kStages * bytes;
    s.coefficients = reinterpret_cast<Coefficients*>(base);
    s.K.data = reinterpret_cast<bf16*>(base + C * sizeof(Coefficients));
    s.Q = {s.K.data + keys, C, kKeyDim};
    s.M.data = s.Q.data + keys;
    s.V.data = s.M.data + matrices;
    return s;
  }

  // Rows [chunk * C, + C) of `tile.width` channels from `channel` on; zeros at and beyond n_tokens.
  __device__ void fetch(const Tile& tile, int chunk, int channel) {
    const int shift = 31 - __clz(tile.width / 8);  // widths are powers of two
    const Act* base = in.row(slot, in.first) + channel;
#pragma unroll 2
    for (int e = threadIdx.x; e < C << shift; e += blockDim.x) {
      const int row = e >> shift, column = (e - (row << shift)) * 8, t = chunk * C + row;
      const Act* from = base + size_t(min(t, live - 1)) * in.width() + column;
      if constexpr (P::kInput == 1) {
        copy_async(tile.at(0, row, column), from, t < live);
      } else {
        float x[8] = {};
        if (t < live) load(from, x);
#pragma unroll
        for (int p = 0; p < P::kInput; ++p) {
          store(tile.at(p, row, column), x);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] -= to_float(from_float<bf16>(x[i]));
        }
      }
    }
  }

  __device__ void fetch(int chunk) {
    const Stage s = stage(chunk);
    const int item = (slot * chunks + chunk) * in.value_heads + head;
    fetch(s.Q, chunk, key_head * kKeyDim);
    fetch(s.K, chunk, (in.key_heads + key_head) * kKeyDim);
    fetch(s.V, chunk, 2 * in.key_heads * kKeyDim + head * in.value_dim + first_column);
#pragma unroll 2
    for (int e = threadIdx.x; e < kMatrices * C * C / 8; e += blockDim.x) {
      const int row = e / (C / 8), column = e % (C / 8) * 8;  // row counts through the planes
      if (column / 16 <= row % C / 16) copy_async(s.M.at(0, row, column), work.plane(item, 0) + row * C + column, true);
    }
    for (int t = threadIdx.x; t < C; t += blockDim.x) copy_async(s.coefficients + t, work.row(item) + t, true);
    commit_copies();
  }

  // S^T's element (v, k) of column tile n: v = lane / 4 + 8 half, k = 8 n + 2 (lane % 4) + e.
  template <class F>
  __device__ void each_state(F&& f) {
    float* tile = in.S + size_t(slot * in.value_heads + head) * kKeyDim * in.value_dim;
#pragma unroll
    for (int n = 0; n < kKeyDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = n * 8 + lane % 4 * 2 + i % 2, v = first_column + warp * 16 + i / 2 * 8 + lane / 4;
        f(S[n][i], tile[size_t(k) * in.value_dim + v]);
      }
  }

  // (X S)^T [16, C] for X = K or Q, with S in `Terms` bf16 terms.
  template <int Terms>
  __device__ void read_state(const Tile& x, float (&xs)[C / 8][4]) {
#pragma unroll
    for (int k = 0; k < kKeyDim / 16; ++k) {
      const Operand<Terms> a(S[2 * k], S[2 * k + 1]);
#pragma unroll
      for (int p = 0; p < P::kInput; ++p) {
        BfPair b[C / 16][4];
#pragma unroll
        for (int n = 0; n < C / 16; ++n) x.template read<false, false>(b[n], p, n * 16, k * 16);
        multiply<Terms>(xs, a, b, p);
      }
    }
  }

  // Scales the columns (tokens) of a [16, C] matrix by one of their coefficients.
  __device__ void scale(const Stage& s, float Coefficients::*by, float (&x)[C / 8][4]) {
#pragma unroll
    for (int n = 0; n < C / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] *= s.coefficients[n * 8 + lane % 4 * 2 + i % 2].*by;
  }

  // R^T = V^T - (K S)^T, in place.
  __device__ void residual(const Stage& s, float (&r)[C / 8][4]) {
#pragma unroll
    for (int n = 0; n < C / 16; ++n) {
      float v[2][4] = {};
#pragma unroll
      for (int p = P::kInput - 1; p >= 0; --p) {
        BfPair part[4];
        s.V.template read<true, false>(part, p, n * 16, warp * 16);
#pragma unroll
        for (int m = 0; m < 4; ++m) v[m / 2][m % 2 * 2] += low(part[m]), v[m / 2][m % 2 * 2 + 1] += high(part[m]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) r[2 * n + i / 4][i % 4] = v[i / 4][i % 4] - r[2 * n + i / 4][i % 4];
    }
  }

  // to^T += from^T M^T for a lower triangular M [C, C] in kState planes from `first_plane` on.
  __device__ void lower(const Stage& s, int first_plane, const float (&from)[C / 8][4], float (&to)[C / 8][4]) {
#pragma unroll
    for (int j = 0; j < C / 16; ++j) {
      const Operand<P::kState> a(from[2 * j], from[2 * j + 1]);
#pragma unroll
      for (int p = 0; p < P::kState; ++p) {
        BfPair b[C / 16][4];
#pragma unroll
        for (int i = j; i < C / 16; ++i) s.M.template read<false, false>(b[i], first_plane + p, i * 16, j * 16);
        multiply<P::kState>(to, a, b, p, j);
      }
    }
  }

  // S^T = exp(G_C) S^T + (U diag(update))^T K
  __device__ void update_state(const Stage& s, float (&u)[C / 8][4]) {
    const float decay = s.coefficients[0].decay;
#pragma unroll
    for (int n = 0; n < kKeyDim / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) S[n][i] *= decay;
    scale(s, &Coefficients::update, u);
#pragma unroll
    for (int j = 0; j < C / 16; ++j) {
      const Operand<P::kState> a(u[2 * j], u[2 * j + 1]);
#pragma unroll
      for (int k = 0; k < kKeyDim / 16; k += kTogether)
#pragma unroll
        for (int p = 0; p < P::kInput; ++p) {
          BfPair b[kTogether][4];
#pragma unroll
          for (int n = 0; n < kTogether; ++n) s.K.template read<true, true>(b[n], p, j * 16, (k + n) * 16);
          multiply<P::kState>(S + 2 * k, a, b, p);
        }
    }
  }

  __device__ Act* output(int t) const {
    const size_t row = (size_t(slot) * in.tokens + in.first + t) * in.value_heads + head;
    return in.o + row * in.value_dim + first_column + warp * 16;
  }

  // O^T [16, C] to the rows of o. bf16 goes through this warp's columns of V, which it has used up, for 16-byte stores.
  __device__ void write_output(const Stage& s, int chunk, const float (&o)[C / 8][4]) {
#pragma unroll
    for (int n = 0; n < C / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = n * 8 + lane % 4 * 2 + i % 2, v = i / 2 * 8 + lane / 4;
        if constexpr (kStages == 2)
          *s.V.at(0, t, warp * 16 + v) = from_float<Act>(o[n][i]);
        else if (chunk * C + t < in.count)
          output(chunk * C + t)[v] = chunk * C + t < live ? o[n][i] : 0.0f;
      }
    if constexpr (kStages == 2) {
      __syncwarp();
#pragma unroll
      for (int i = 0; i < C / 16; ++i) {
        const int t = i * 16 + lane / 2, v = lane % 2 * 8;
        if (chunk * C + t >= in.count) continue;
        uint4 pack = *reinterpret_cast<const uint4*>(s.V.at(0, t, warp * 16 + v));
        if (chunk * C + t >= live) pack = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4*>(output(chunk * C + t) + v) = pack;
      }
    }
  }

  // Zeros for the tokens from `first` to the end of the segment.
  __device__ void write_zeros(int first) {
    for (int e = first * 16 + lane; e < in.count * 16; e += 32) output(e / 16)[e % 16] = from_float<Act>(0.0f);
  }

  __device__ void compute(int chunk) {
    const Stage s = stage(chunk);
    float u[C / 8][4] = {};
    {
      float r[C / 8][4] = {};
      read_state<P::kState>(s.K, r);
      scale(s, &Coefficients::k, r);
      residual(s, r);
      lower(s, 0, r, u);
    }
    {
      float o[C / 8][4] = {};
      read_state<P::kRead>(s.Q, o);
      scale(s, &Coefficients::q, o);
      lower(s, P::kState, u, o);
      write_output(s, chunk, o);
    }
    update_state(s, u);
  }

  __device__ void run() {
    const int live_chunks = (live + C - 1) / C;
    if (live_chunks) {
      each_state([](float& mine, float& global) { mine = global; });
      if (kStages == 2) fetch(0);
    }
    for (int chunk = 0; chunk < live_chunks; ++chunk) {
      if (kStages == 1) {
        __syncthreads();  // the last chunk's tiles are done with
        fetch(chunk);
      }
      wait_copies<0>();
      __syncthreads();
      if (kStages == 2 && chunk + 1 < live_chunks) fetch(chunk + 1);
      compute(chunk);
    }
    if (live_chunks) each_state([](float& mine, float& global) { global = mine; });
    write_zeros(live_chunks * C);
  }
};
