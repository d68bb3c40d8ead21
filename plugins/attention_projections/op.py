"""Contract of the projections of the attention layer's input that are read together."""

from deltart.plugins.attention_projections.reference import attention_projections
from deltart.plugins.spec import ACT, FP8, STORED, OpSpec, TensorSpec

ATTENTION_PROJECTIONS = OpSpec(
    name="AttentionProjections",
    doc="q, k, v = x W^T for the three block-FP8 weights of an attention layer.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("q_weight", FP8, ("Nq", "K")),
        TensorSpec("q_scale_inv", STORED, ("Nq_blocks", "K_blocks")),
        TensorSpec("k_weight", FP8, ("Nk", "K")),
        TensorSpec("k_scale_inv", STORED, ("Nk_blocks", "K_blocks")),
        TensorSpec("v_weight", FP8, ("Nv", "K")),
        TensorSpec("v_scale_inv", STORED, ("Nv_blocks", "K_blocks")),
    ),
    outputs=(
        TensorSpec("q", ACT, ("B", "T", "Nq")),
        TensorSpec("k", ACT, ("B", "T", "Nk")),
        TensorSpec("v", ACT, ("B", "T", "Nv")),
    ),
    attributes={"quantize_activations": int},
    reference=attention_projections,
)
