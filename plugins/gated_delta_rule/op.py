"""Contract of the gated delta rule (Yang et al., "Gated Delta Networks", 2024), gates and normalisation included."""

from deltart.plugins.gated_delta_rule.reference import gated_delta_norm, gated_delta_rule
from deltart.plugins.spec import ACT, F32, I32, STORED, OpSpec, TensorSpec

GATED_DELTA_RULE = OpSpec(
    name="GatedDeltaRule",
    doc="o of the gated delta rule for n_tokens of T tokens, and S' after the first n_commit of them (<= n_tokens).",
    inputs=(
        TensorSpec("qkv", ACT, ("B", "T", "C")),  # C = 2*Hk*Dk + Hv*Dv, after the convolution
        TensorSpec("a", ACT, ("B", "T", "num_v_heads")),
        TensorSpec("b", ACT, ("B", "T", "num_v_heads")),
        TensorSpec("A_log", STORED, ("num_v_heads",)),
        TensorSpec("dt_bias", STORED, ("num_v_heads",)),
        TensorSpec("S", F32, ("B", "num_v_heads", "head_k_dim", "head_v_dim")),
        TensorSpec("n_tokens", I32, ("B",)),
        TensorSpec("n_commit", I32, ("B",)),  # beyond 8 tokens the kernels take n_commit = n_tokens only
    ),
    outputs=(
        TensorSpec("o", ACT, ("B", "T", "num_v_heads*head_v_dim")),
        TensorSpec("S", F32, ("B", "num_v_heads", "head_k_dim", "head_v_dim"), alias="S"),
    ),
    attributes={"num_k_heads": int, "num_v_heads": int, "head_k_dim": int, "head_v_dim": int},
    reference=gated_delta_rule,
)

GATED_DELTA_NORM = OpSpec(
    name="GatedDeltaNorm",
    doc="GatedDeltaRule with T <= 8 and GatedRMSNorm of its o; y is zero at and beyond n_tokens.",
    inputs=(
        *GATED_DELTA_RULE.inputs,
        TensorSpec("norm_weight", STORED, ("head_v_dim",)),
        TensorSpec("z", ACT, ("B", "T", "N")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "num_v_heads*head_v_dim")), GATED_DELTA_RULE.outputs[1]),
    attributes={**GATED_DELTA_RULE.attributes, "epsilon": float},
    reference=gated_delta_norm,
)
