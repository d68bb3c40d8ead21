// What the two prefill kernels share: number formats, workspace layout, shared-memory tiles. README.md has the math.
#pragma once
#include "../common/tensor_core.cuh"
#include "../common/warp.cuh"
#include "gates.cuh"

#ifndef KEY_DIM
#define KEY_DIM 128
#endif

constexpr int kKeyDim = KEY_DIM;

// How many bf16 planes stand for one number. f32 activations are held exactly (3 x 8 bits); with bf16
// activations q, k and v are exact in one plane, what feeds the state or is summed with cancellation (kState: S and
// R towards the state, U, T' and A) is kept to 16 bits, and only S as the queries read it (kRead) to 8.
template <class Act>
struct Planes;
template <>
struct Planes<float> {
  static constexpr int kInput = 3, kState = 3, kRead = 3;
};
template <>
struct Planes<bf16> {
  static constexpr int kInput = 1, kState = 2, kRead = 1;
};

// Per token and value head, with G the running sum of g within the chunk and G_C its last value.
struct alignas(16) Coefficients {
  float k;      // k_scale exp(G):        k^T S is this times the raw key's product
  float q;      // q_scale exp(G)
  float update; // k_scale exp(G_C - G):  weight of u k^T in the chunk's last state
  float decay;  // exp(G_C)
};

// Workspace of one segment: for each (slot, chunk, value head) the matrices T' and A (kState planes each),
// C x C bf16, and C coefficients.
template <class Act, int C>
struct Workspace {
  static constexpr int kPlanes = 2 * Planes<Act>::kState;
  bf16* matrices;
  Coefficients* coefficients;
  __device__ Workspace(unsigned char* base, int slots, int chunks, int value_heads)
      : matrices(reinterpret_cast<bf16*>(base)),
        coefficients(reinterpret_cast<Coefficients*>(base + size_t(slots) * chunks * value_heads * kPlanes * C * C * sizeof(bf16))) {}
  __device__ bf16* plane(int item, int plane) const { return matrices + (size_t(item) * kPlanes + plane) * C * C; }
  __device__ Coefficients* row(int item) const { return coefficients + size_t(item) * C; }
};

// A [rows, Width] bf16 tile in shared memory, `planes` times; rows are padded by 16 bytes against bank conflicts.
struct Tile {
  bf16* data;
  int rows, width;
  __device__ __forceinline__ int stride() const { return width + 8; }
  __device__ __forceinline__ bf16* at(int plane, int row, int column) const {
    return data + (plane * rows + row) * stride() + column;
  }

  // The four 8x8 matrices at (row, column): two down, then two across (DownFirst), or the other way round.
  template <bool Transposed, bool DownFirst>
  __device__ __forceinline__ void read(BfPair (&to)[4], int plane, int row, int column) const {
    const int lane = threadIdx.x % 32, m = lane / 8, down = DownFirst ? m % 2 : m / 2, across = DownFirst ? m / 2 : m % 2;
    load_matrices<Transposed>(to, at(plane, row + down * 8 + lane % 8, column + across * 8));
  }
};

template <class Act>
struct Prefill {
  const Act *qkv, *a, *b;
  Parameter A_log, dt_bias;
  float* S;
  const int* n_tokens;
  Act* o;
  unsigned char* workspace;
  int tokens, first, count;  // the segment [first, first + count) of `tokens`
  int key_heads, value_heads, value_dim;
  __device__ int width() const { return 2 * key_heads * kKeyDim + value_heads * value_dim; }
  __device__ const Act* row(int slot, int t) const { return qkv + (size_t(slot) * tokens + t) * width(); }
  __device__ int live(int slot) const { return max(0, min(n_tokens[slot] - first, count)); }
};

#define PREFILL_INPUTS(Act)                                                                                      \
  const Act *qkv, const Act *a, const Act *b, const void *A_log, const void *dt_bias, int bf16_A_log, int bf16_dt_bias,       \
      float *S, const int *n_tokens, Act *o, unsigned char *workspace, int tokens, int first, int count,         \
      int key_heads, int value_heads, int value_dim
#define PREFILL_FORWARD                                                                                          \
  {qkv, a, b, {A_log, bf16_A_log}, {dt_bias, bf16_dt_bias}, S, n_tokens, o, workspace, tokens, first,    \
   count, key_heads, value_heads, value_dim}
