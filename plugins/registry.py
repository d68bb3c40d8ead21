"""Every composite op of the toolkit. A new op is a folder beside this file and a line here."""

from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.fp8_block_linear.op import FP8_BLOCK_LINEAR
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.spec import OpSpec

OPS: tuple[OpSpec, ...] = (CAUSAL_CONV1D, GATED_DELTA_RULE, GATED_RMS_NORM, GATED_ATTENTION, FP8_BLOCK_LINEAR)
