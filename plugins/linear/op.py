"""Contracts of the linears whose weights are plain bf16: alone, gated in pairs, and the gate's product by itself."""

from deltart.plugins.linear.reference import linear, linear_gate_up, silu_mul
from deltart.plugins.spec import ACT, STORED, OpSpec, TensorSpec

_X, _Y = TensorSpec("x", ACT, ("B", "T", "K")), TensorSpec("y", ACT, ("B", "T", "N"))

LINEAR = OpSpec(
    name="Linear",
    doc="y = x W^T.",
    inputs=(_X, TensorSpec("weight", STORED, ("N", "K"))),
    outputs=(_Y,),
    reference=linear,
)

LINEAR_GATE_UP = OpSpec(
    name="LinearGateUp",
    doc="y = silu(x W^T) * (x U^T).",
    inputs=(_X, TensorSpec("weight", STORED, ("N", "K")), TensorSpec("up_weight", STORED, ("N", "K"))),
    outputs=(_Y,),
    reference=linear_gate_up,
)

SILU_MUL = OpSpec(
    name="SiluMul",
    doc="y = silu(gate) * up.",
    inputs=(TensorSpec("gate", ACT, ("B", "T", "N")), TensorSpec("up", ACT, ("B", "T", "N"))),
    outputs=(_Y,),
    reference=silu_mul,
)
