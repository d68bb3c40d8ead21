"""Contract of the linear whose weight is symmetric int4 in groups, as compressed-tensors packs it.

Eight values are one int32 of the vendor's file, the first in its lowest bits; read as bytes that is the layout of
ONNX Runtime's MatMulNBits, so nothing is repacked.
"""

from deltart.plugins.int4_linear.reference import int4_group_linear
from deltart.plugins.spec import ACT, STORED, U8, OpSpec, TensorSpec

INT4_GROUP_LINEAR = OpSpec(
    name="Int4GroupLinear",
    doc="y = x W^T with W = (nibble - 8) * weight_scale, one scale per group_size values of a row; no kernel yet.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight_groups", U8, ("N", "groups", "group_bytes")),
        TensorSpec("weight_scale", STORED, ("N", "groups")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    attributes={"K": int, "N": int, "group_size": int},
    reference=int4_group_linear,
)
