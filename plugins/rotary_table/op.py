"""Contract of the rotary table: cos and sin of the interleaved multimodal RoPE angles."""

from deltart.plugins.rotary_table.reference import rotary_table
from deltart.plugins.spec import ACT, F32, I64, OpSpec, TensorSpec

ROTARY_TABLE = OpSpec(
    name="RotaryTable",
    doc="cos, sin = scale * cos(angle), scale * sin(angle), angle = position_ids[axes] * inv_freq.",
    inputs=(
        TensorSpec("position_ids", I64, ("3", "B", "T")),
        TensorSpec("axes", I64, ("P",)),
        TensorSpec("inv_freq", F32, ("P",)),
    ),
    outputs=(TensorSpec("cos", ACT, ("B", "T", "P")), TensorSpec("sin", ACT, ("B", "T", "P"))),
    attributes={"scale": float},
    reference=rotary_table,
)
