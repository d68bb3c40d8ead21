"""Contracts of the norms between two blocks: with the sum before it, and alone. Native plans have them as nodes."""

from deltart.plugins.residual_rms_norm.reference import residual_rms_norm, rms_norm
from deltart.plugins.spec import ACT, STORED, OpSpec, TensorSpec

_ROWS = ("B", "T", "D")

RESIDUAL_RMS_NORM = OpSpec(
    name="ResidualRmsNorm",
    doc="sum = h + x; y = (1 + weight) * sum / rms(sum).",
    inputs=(TensorSpec("x", ACT, _ROWS), TensorSpec("h", ACT, _ROWS), TensorSpec("weight", STORED, ("D",))),
    outputs=(TensorSpec("y", ACT, _ROWS), TensorSpec("sum", ACT, _ROWS)),
    attributes={"epsilon": float},
    reference=residual_rms_norm,
)

RMS_NORM = OpSpec(
    name="RmsNorm",
    doc="y = (1 + weight) * h / rms(h).",
    inputs=(TensorSpec("h", ACT, _ROWS), TensorSpec("weight", STORED, ("D",))),
    outputs=(TensorSpec("y", ACT, _ROWS),),
    attributes={"epsilon": float},
    reference=rms_norm,
)
