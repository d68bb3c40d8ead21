"""Contract of a linear layer whose weight is E4M3 with one scale per 128 x 128 block."""

from deltart.plugins.fp8_block_linear.reference import fp8_block_linear
from deltart.plugins.spec import ACT, FP8, STORED, OpSpec, TensorSpec

FP8_BLOCK_LINEAR = OpSpec(
    name="Fp8BlockLinear",
    doc="y = x W^T with W = weight * weight_scale_inv, one scale per 128 x 128 block; activations are not quantized.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight", FP8, ("N", "K")),
        TensorSpec("weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    reference=fp8_block_linear,
)
