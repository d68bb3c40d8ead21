"""Contract of the projections of the Gated DeltaNet layer's input that are read together."""

from deltart.plugins.delta_net_projections.reference import delta_net_projections
from deltart.plugins.spec import ACT, FP8, STORED, OpSpec, TensorSpec

DELTA_NET_PROJECTIONS = OpSpec(
    name="DeltaNetProjections",
    doc="qkv, z, a, b = x W^T: the first two weights block FP8, the others plain.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("qkv_weight", FP8, ("Nqkv", "K")),
        TensorSpec("qkv_scale_inv", STORED, ("Nqkv_blocks", "K_blocks")),
        TensorSpec("z_weight", FP8, ("Nz", "K")),
        TensorSpec("z_scale_inv", STORED, ("Nz_blocks", "K_blocks")),
        TensorSpec("a_weight", STORED, ("Ha", "K")),
        TensorSpec("b_weight", STORED, ("Hb", "K")),
    ),
    outputs=(
        TensorSpec("qkv", ACT, ("B", "T", "Nqkv")),
        TensorSpec("z", ACT, ("B", "T", "Nz")),
        TensorSpec("a", ACT, ("B", "T", "Ha")),
        TensorSpec("b", ACT, ("B", "T", "Hb")),
    ),
    attributes={"quantize_activations": int},
    reference=delta_net_projections,
)
