"""Contract of the causal depthwise convolution with carried state and SiLU."""

from deltart.plugins.causal_conv1d.reference import causal_conv1d
from deltart.plugins.spec import ACT, I32, STORED, OpSpec, TensorSpec

CAUSAL_CONV1D = OpSpec(
    name="CausalConv1d",
    doc="y = silu(depthwise causal conv of x); the state is the W-1 raw inputs before token n_commit, oldest first.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "C")),
        TensorSpec("weight", STORED, ("C", "1", "W")),
        TensorSpec("state", ACT, ("B", "W-1", "C")),
        TensorSpec("n_commit", I32, ("B",)),
    ),
    outputs=(
        TensorSpec("y", ACT, ("B", "T", "C")),
        TensorSpec("state", ACT, ("B", "W-1", "C"), alias="state"),
    ),
    reference=causal_conv1d,
)
