"""Contracts of the LM head, of a plain weight and an E4M3 one: logits in f32, not rounded to the activation type."""

from deltart.plugins.lm_head.reference import fp8_lm_head, lm_head
from deltart.plugins.spec import ACT, F32, FP8, STORED, OpSpec, TensorSpec

LM_HEAD = OpSpec(
    name="LmHead",
    doc="logits = x W^T in f32.",
    inputs=(TensorSpec("x", ACT, ("B", "L", "K")), TensorSpec("weight", STORED, ("V", "K"))),
    outputs=(TensorSpec("logits", F32, ("B", "L", "V")),),
    reference=lm_head,
)

FP8_LM_HEAD = OpSpec(
    name="Fp8LmHead",
    doc="logits = x W^T in f32 with W = weight * weight_scale, one scale per row and 128 columns.",
    inputs=(
        TensorSpec("x", ACT, ("B", "L", "K")),
        TensorSpec("weight", FP8, ("V", "K")),
        TensorSpec("weight_scale", STORED, ("V", "K_groups")),
    ),
    outputs=(TensorSpec("logits", F32, ("B", "L", "V")),),
    reference=fp8_lm_head,
)
