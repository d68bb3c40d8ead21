// Several linears of one x for few tokens, in one launch.
#include "projections.cuh"

PROJECTIONS_KERNEL(float, f32, 1, 1)
PROJECTIONS_KERNEL(bf16, bf16, 1, 3)
PROJECTIONS_KERNEL(float, f32, 2, 1)
PROJECTIONS_KERNEL(bf16, bf16, 2, 2)
PROJECTIONS_KERNEL(float, f32, 4, 1)
PROJECTIONS_KERNEL(bf16, bf16, 4, 1)
