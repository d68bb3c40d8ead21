"""The composite ops as torch callables: a reference body when run, one node when traced."""

from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.fp8_block_linear.op import FP8_BLOCK_LINEAR
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.moe_experts.op import FP8_MOE_EXPERTS, MOE_EXPERTS
from deltart.plugins.registry import MODEL_OPS
from deltart.plugins.torch_op import torch_op, translation

causal_conv1d = torch_op(CAUSAL_CONV1D)
gated_delta_rule = torch_op(GATED_DELTA_RULE)
gated_rms_norm = torch_op(GATED_RMS_NORM)
gated_attention = torch_op(GATED_ATTENTION)
fp8_block_linear = torch_op(FP8_BLOCK_LINEAR)
moe_experts = torch_op(MOE_EXPERTS)
fp8_moe_experts = torch_op(FP8_MOE_EXPERTS)

TRANSLATIONS = dict(translation(spec) for spec in MODEL_OPS)
