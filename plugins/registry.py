"""Every composite op of the toolkit. A new op is a folder beside this file and a line here."""

from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.fp8_linear.op import (
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    FP8_BLOCK_GATE_UP,
    FP8_BLOCK_LINEAR,
    FP8_LINEAR_NORM,
)
from deltart.plugins.gated_attention.op import GATED_ATTENTION, ROPE_GATED_ATTENTION
from deltart.plugins.gated_delta_rule.op import CONV_GATED_DELTA_NORM, GATED_DELTA_NORM, GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.int4_experts.op import INT4_MOE_EXPERTS
from deltart.plugins.int4_linear.op import (
    INT4_ATTENTION_PROJECTIONS,
    INT4_DELTA_NET_PROJECTIONS,
    INT4_GROUP_GATE_UP,
    INT4_GROUP_LINEAR,
    INT4_LINEAR_NORM,
    INT4_LM_HEAD,
)
from deltart.plugins.linear.op import LINEAR, LINEAR_GATE_UP, SILU_MUL
from deltart.plugins.lm_head.op import FP8_LM_HEAD, LM_HEAD
from deltart.plugins.moe_experts.op import (
    FP8_MOE_EXPERTS,
    FP8_MOE_EXPERTS_NORM,
    FP8_SPARSE_MOE,
    FP8_SPARSE_MOE_NORM,
    MOE_EXPERTS,
    MOE_EXPERTS_NORM,
    SPARSE_MOE,
    SPARSE_MOE_NORM,
)
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.residual_rms_norm.op import RESIDUAL_RMS_NORM, RMS_NORM
from deltart.plugins.rotary_table.op import ROTARY_TABLE
from deltart.plugins.rows.op import CONCAT_ROWS, EMBEDDING, TAKE_ROWS
from deltart.plugins.spec import OpSpec

# What the models are written in.
MODEL_OPS: tuple[OpSpec, ...] = (
    CAUSAL_CONV1D,
    GATED_DELTA_RULE,
    GATED_RMS_NORM,
    GATED_ATTENTION,
    FP8_BLOCK_LINEAR,
    INT4_GROUP_LINEAR,
    MOE_EXPERTS,
    FP8_MOE_EXPERTS,
    INT4_MOE_EXPERTS,
)
# Those of them without a kernel: lowering a graph that has one for a GPU is refused.
HOST_OPS: tuple[OpSpec, ...] = (INT4_MOE_EXPERTS,)
# What the TensorRT lowering puts in place of several nodes (export/lower/fuse.py).
FUSED_OPS: tuple[OpSpec, ...] = (
    FP8_BLOCK_GATE_UP,
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    INT4_ATTENTION_PROJECTIONS,
    INT4_DELTA_NET_PROJECTIONS,
    INT4_GROUP_GATE_UP,
    INT4_LM_HEAD,
    LM_HEAD,
    QK_NORM_ROPE,
    SPARSE_MOE,
    FP8_SPARSE_MOE,
)
# What TensorRT has plugins of.
OPS: tuple[OpSpec, ...] = (*(spec for spec in MODEL_OPS if spec not in HOST_OPS), *FUSED_OPS)
# What the native lowering puts in place of the standard nodes that are left, which TensorRT compiles itself.
NATIVE_OPS: tuple[OpSpec, ...] = (
    CONCAT_ROWS,
    CONV_GATED_DELTA_NORM,
    FP8_LINEAR_NORM,
    FP8_LM_HEAD,
    FP8_MOE_EXPERTS_NORM,
    FP8_SPARSE_MOE_NORM,
    GATED_DELTA_NORM,
    EMBEDDING,
    INT4_LINEAR_NORM,
    LINEAR,
    LINEAR_GATE_UP,
    MOE_EXPERTS_NORM,
    RESIDUAL_RMS_NORM,
    RMS_NORM,
    ROPE_GATED_ATTENTION,
    ROTARY_TABLE,
    SILU_MUL,
    SPARSE_MOE_NORM,
    TAKE_ROWS,
)
