"""Contract of the per-head RMS norm of the GDN output, gated by silu(z)."""

from deltart.plugins.gated_rms_norm.reference import gated_rms_norm
from deltart.plugins.spec import ACT, STORED, OpSpec, TensorSpec

GATED_RMS_NORM = OpSpec(
    name="GatedRMSNorm",
    doc="y = weight * x / rms(x) * silu(z), the norm over each head (the length of weight).",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "N")),
        TensorSpec("weight", STORED, ("D",)),
        TensorSpec("z", ACT, ("B", "T", "N")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    attributes={"epsilon": float},
    reference=gated_rms_norm,
)
