"""Contract of grouped-query attention over a per-slot KV cache, with the sigmoid output gate."""

from deltart.plugins.gated_attention.reference import gated_attention, rope_gated_attention
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.spec import ACT, I32, OpSpec, TensorSpec

GATED_ATTENTION = OpSpec(
    name="GatedAttention",
    doc="Causal attention of T new tokens over past_len + T keys, times sigmoid(gate); writes n_tokens new K/V rows.",
    inputs=(
        TensorSpec("q", ACT, ("B", "T", "Nq")),  # Nq = num_heads*head_dim, after q_norm and RoPE
        TensorSpec("k", ACT, ("B", "T", "Nkv")),
        TensorSpec("v", ACT, ("B", "T", "Nkv")),
        TensorSpec("gate", ACT, ("B", "T", "Nq")),
        TensorSpec("k_cache", ACT, ("B", "num_kv_heads", "capacity", "head_dim")),
        TensorSpec("v_cache", ACT, ("B", "num_kv_heads", "capacity", "head_dim")),
        TensorSpec("past_len", I32, ("B",)),
        TensorSpec("n_tokens", I32, ("B",)),
    ),
    outputs=(
        TensorSpec("o", ACT, ("B", "T", "Nq")),
        TensorSpec("k_cache", ACT, ("B", "num_kv_heads", "capacity", "head_dim"), alias="k_cache"),
        TensorSpec("v_cache", ACT, ("B", "num_kv_heads", "capacity", "head_dim"), alias="v_cache"),
    ),
    attributes={"num_heads": int, "num_kv_heads": int, "head_dim": int},
    reference=gated_attention,
)

ROPE_GATED_ATTENTION = OpSpec(
    name="RopeGatedAttention",
    doc="QkNormRope and GatedAttention of its q, k and gate, with T <= 8.",
    inputs=(
        *QK_NORM_ROPE.inputs,
        GATED_ATTENTION.inputs[2],
        *GATED_ATTENTION.inputs[4:],
        TensorSpec("arrived", I32, ("B*num_kv_heads or more",)),  # 0 before and after
    ),
    outputs=(TensorSpec("o", ACT, ("B", "T", "num_heads*head_dim")), *GATED_ATTENTION.outputs[1:]),
    attributes=QK_NORM_ROPE.attributes,
    reference=rope_gated_attention,
)
