"""Contract of the LM head whose weight is plain floating point: logits in f32, not rounded to the activation type."""

from deltart.plugins.lm_head.reference import lm_head
from deltart.plugins.spec import ACT, F32, STORED, OpSpec, TensorSpec

LM_HEAD = OpSpec(
    name="LmHead",
    doc="logits = x W^T in f32.",
    inputs=(TensorSpec("x", ACT, ("B", "L", "K")), TensorSpec("weight", STORED, ("V", "K"))),
    outputs=(TensorSpec("logits", F32, ("B", "L", "V")),),
    reference=lm_head,
)
