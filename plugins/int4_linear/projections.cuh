// Several linears of one x for few tokens, in one launch: up to three int4 weights and up to two bf16 ones.
//
// A block works on one weight, as in decode.cu. The bf16 weights, of four times the bytes a row, come first, and all warps
// of their blocks share 16 rows. Grid (ceil(M / (8 MT)), the weights' blocks one after the other).
#pragma once
#include "decode.cuh"

namespace {

constexpr int kInt4 = 3, kPlain = 2;

template <class Act>
struct Projections {
  const Act* x;
  Int4Group int4[kInt4];  // N is 0 for those that are not there
  Bf16 plain[kPlain];
  Act *int4_y[kInt4], *plain_y[kPlain];
  int M, row_groups;
};

template <int MT, class Act>
__device__ void project(const Projections<Act>& in, float* memory) {
  int block = blockIdx.y;
  Act* y = nullptr;
  Int4Group int4 = in.int4[0];
  Bf16 plain = in.plain[0];
  if (pick(in.plain, in.plain_y, kRows, block, plain, y))
    run<false, MT>(Linear<Act, Bf16>{in.x, plain, y, in.M, 1}, plain, block, memory);
  else if (pick(in.int4, in.int4_y, kRows * in.row_groups, block, int4, y))
    run<false, MT>(Linear<Act, Int4Group>{in.x, int4, y, in.M, in.row_groups}, int4, block, memory);
}

}  // namespace

#define INT4_SCALES(scale) \
  { static_cast<const unsigned char*>(scale), scale_type, groups, shift }

#define INT4_PROJECTIONS_KERNEL(Act, suffix, tiles, resident)                                                           \
  extern "C" __global__ void __launch_bounds__(128, resident) int4_linear_projections_##suffix##_m##tiles(              \
      const Act* x, int scale_type, const unsigned char* w0, const void* s0, Act* y0, int n0, const unsigned char* w1,  \
      const void* s1, Act* y1, int n1, const unsigned char* w2, const void* s2, Act* y2, int n2, const bf16* w3,        \
      Act* y3, int n3, const bf16* w4, Act* y4, int n4, int M, int K, int groups, int shift, int row_groups) {          \
    SHARED_MEMORY(memory);                                                                                              \
    const Projections<Act> in = {                                                                                       \
        x,                                                                                                              \
        {{w0, INT4_SCALES(s0), n0, K}, {w1, INT4_SCALES(s1), n1, K}, {w2, INT4_SCALES(s2), n2, K}},                     \
        {{w3, n3, K}, {w4, n4, K}},                                                                                     \
        {y0, y1, y2},                                                                                                   \
        {y3, y4},                                                                                                       \
        M,                                                                                                              \
        row_groups};                                                                                                    \
    project<tiles>(in, reinterpret_cast<float*>(memory));                                                               \
  }                                                                                                                     \
  EXPORT_KERNEL(int4_linear_projections_##suffix##_m##tiles)
