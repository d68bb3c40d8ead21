"""Contract of the first half of a SwiGLU MLP whose two weights are block-128 FP8."""

from deltart.plugins.fp8_block_gate_up.reference import fp8_block_gate_up
from deltart.plugins.spec import ACT, FP8, STORED, OpSpec, TensorSpec

FP8_BLOCK_GATE_UP = OpSpec(
    name="Fp8BlockGateUp",
    doc="y = silu(x W^T) * (x U^T), W and U as in Fp8BlockLinear.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight", FP8, ("N", "K")),
        TensorSpec("weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
        TensorSpec("up_weight", FP8, ("N", "K")),
        TensorSpec("up_weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    attributes={"quantize_activations": int},
    reference=fp8_block_gate_up,
)
