// Several linears of one x for few tokens, in one launch.
#include "projections.cuh"

INT4_PROJECTIONS_KERNEL(float, f32, 1, 1)
INT4_PROJECTIONS_KERNEL(bf16, bf16, 1, 4)
INT4_PROJECTIONS_KERNEL(float, f32, 2, 1)
INT4_PROJECTIONS_KERNEL(bf16, bf16, 2, 4)
INT4_PROJECTIONS_KERNEL(float, f32, 4, 1)
INT4_PROJECTIONS_KERNEL(bf16, bf16, 4, 2)
