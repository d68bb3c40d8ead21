"""Contract of a linear layer whose weight is E4M3 with one scale per 128 x 128 block.

With `quantize_activations` = 1, x is rounded to E4M3 first, with a scale of amax / 448 per token and 128 of K (W8A8);
with 0 it is taken as it is (W8A16).
"""

from deltart.plugins.fp8_block_linear.reference import fp8_block_linear
from deltart.plugins.spec import ACT, FP8, STORED, OpSpec, TensorSpec

FP8_BLOCK_LINEAR = OpSpec(
    name="Fp8BlockLinear",
    doc="y = x W^T with W = weight * weight_scale_inv, one scale per 128 x 128 block; x may be quantized first.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight", FP8, ("N", "K")),
        TensorSpec("weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    attributes={"quantize_activations": int},
    reference=fp8_block_linear,
)
