"""Contract of the attention's way in: q and k normalised per head and turned by RoPE, the output gate split off."""

from deltart.plugins.qk_norm_rope.reference import qk_norm_rope
from deltart.plugins.spec import ACT, STORED, OpSpec, TensorSpec

QK_NORM_ROPE = OpSpec(
    name="QkNormRope",
    doc="q, k = RoPE(rms_norm(x) * (1 + weight)) per head, RoPE on the first 2 P dimensions; gate is the other half.",
    inputs=(
        TensorSpec("q_gate", ACT, ("B", "T", "Nqg")),  # per head: head_dim of q, then head_dim of the gate
        TensorSpec("k", ACT, ("B", "T", "Nkv")),
        TensorSpec("q_weight", STORED, ("head_dim",)),
        TensorSpec("k_weight", STORED, ("head_dim",)),
        TensorSpec("cos", ACT, ("B", "T", "P")),
        TensorSpec("sin", ACT, ("B", "T", "P")),
    ),
    outputs=(
        TensorSpec("q", ACT, ("B", "T", "num_heads*head_dim")),
        TensorSpec("k_out", ACT, ("B", "T", "num_kv_heads*head_dim")),
        TensorSpec("gate", ACT, ("B", "T", "num_heads*head_dim")),
    ),
    attributes={"num_heads": int, "num_kv_heads": int, "head_dim": int, "epsilon": float},
    reference=qk_norm_rope,
)
