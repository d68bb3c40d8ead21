// Several linears of one x for few tokens, in one launch: up to three block-FP8 weights and up to two bf16 ones.
//
// A block works on one weight, as in decode.cu. Grid (ceil(M / (8 MT)), the weights' blocks one after the other).
#pragma once
#include "decode.cuh"

namespace {

constexpr int kFp8 = 3, kPlain = 2;

template <class Act>
struct Projections {
  const Act* x;
  BlockFp8 fp8[kFp8];  // N is 0 for those that are not there
  Bf16 plain[kPlain];
  Act *fp8_y[kFp8], *plain_y[kPlain];
  int M, row_groups;
};

template <int MT, class Act>
__device__ void project(const Projections<Act>& in, float* memory) {
  const int rows = kRows * in.row_groups;
  int block = blockIdx.y;
  Act* y = nullptr;
  BlockFp8 fp8 = in.fp8[0];
  Bf16 plain = in.plain[0];
  if (pick(in.fp8, in.fp8_y, rows, block, fp8, y))
    run<false, MT>(Linear<Act, BlockFp8>{in.x, fp8, y, in.M, in.row_groups}, fp8, block, memory);
  else if (pick(in.plain, in.plain_y, rows, block, plain, y))
    run<false, MT>(Linear<Act, Bf16>{in.x, plain, y, in.M, in.row_groups}, plain, block, memory);
}

}  // namespace

#define PROJECTIONS_KERNEL(Act, suffix, tiles, resident)                                                               \
  extern "C" __global__ void __launch_bounds__(256, resident) fp8_block_linear_projections_##suffix##_m##tiles(        \
      const Act* x, int bf16_scales, const uint8_t* w0, const void* s0, Act* y0, int n0, const uint8_t* w1,            \
      const void* s1, Act* y1, int n1, const uint8_t* w2, const void* s2, Act* y2, int n2, const bf16* w3, Act* y3,    \
      int n3, const bf16* w4, Act* y4, int n4, int M, int K, int row_groups) {                                         \
    launch_dependents();                                                                                               \
    SHARED_MEMORY(memory);                                                                                             \
    const Projections<Act> in = {x,                                                                                    \
                                 {{w0, {s0, bf16_scales}, n0, K}, {w1, {s1, bf16_scales}, n1, K},                      \
                                  {w2, {s2, bf16_scales}, n2, K}},                                                     \
                                 {{w3, n3, K}, {w4, n4, K}},                                                           \
                                 {y0, y1, y2},                                                                         \
                                 {y3, y4},                                                                             \
                                 M,                                                                                    \
                                 row_groups};                                                                          \
    project<tiles>(in, reinterpret_cast<float*>(memory));                                                              \
  }                                                                                                                    \
  EXPORT_KERNEL(fp8_block_linear_projections_##suffix##_m##tiles)
