"""Contracts of the linears whose weight is symmetric int4 in groups, as compressed-tensors packs it: alone, gated in
pairs, together, with the norm behind it, and with logits in f32.

Eight values are one int32 of the vendor's file, the first in its lowest bits; read as bytes that is the layout of
ONNX Runtime's MatMulNBits, so nothing is repacked.
"""

from deltart.plugins.int4_linear.reference import (
    int4_attention_projections,
    int4_delta_net_projections,
    int4_group_gate_up,
    int4_group_linear,
    int4_linear_norm,
    int4_lm_head,
)
from deltart.plugins.spec import ACT, F32, I32, SCALE, STORED, U8, OpSpec, TensorSpec


def _weight(name: str, n: str) -> tuple[TensorSpec, TensorSpec]:
    return (
        TensorSpec(f"{name}_groups", U8, (n, "groups", "group_bytes")),
        TensorSpec(f"{name}_scale", SCALE, (n, "groups")),
    )


_X, _Y = TensorSpec("x", ACT, ("B", "T", "K")), TensorSpec("y", ACT, ("B", "T", "N"))

INT4_GROUP_LINEAR = OpSpec(
    name="Int4GroupLinear",
    doc="y = x W^T with W = (nibble - 8) * weight_scale, one scale per group_size values of a row.",
    inputs=(_X, *_weight("weight", "N")),
    outputs=(_Y,),
    attributes={"K": int, "N": int, "group_size": int},
    reference=int4_group_linear,
)

INT4_GROUP_GATE_UP = OpSpec(
    name="Int4GroupGateUp",
    doc="y = silu(x W^T) * (x U^T), W and U as in Int4GroupLinear, of one group size.",
    inputs=(_X, *_weight("weight", "N"), *_weight("up", "N")),
    outputs=(_Y,),
    attributes={"group_size": int},
    reference=int4_group_gate_up,
)

INT4_LINEAR_NORM = OpSpec(
    name="Int4LinearNorm",
    doc="sum = h + x W^T, W as in Int4GroupLinear; normed = (1 + norm_weight) * sum / rms(sum). For few tokens.",
    inputs=(
        _X,
        *_weight("weight", "N"),
        TensorSpec("h", ACT, ("B", "T", "N")),
        TensorSpec("norm_weight", STORED, ("N",)),
        TensorSpec("arrived", I32, ("1",)),  # 0 before and after
    ),
    outputs=(TensorSpec("normed", ACT, ("B", "T", "N")), TensorSpec("sum", ACT, ("B", "T", "N"))),
    attributes={"group_size": int, "epsilon": float},
    reference=int4_linear_norm,
)

INT4_LM_HEAD = OpSpec(
    name="Int4LmHead",
    doc="logits = x W^T in f32, W as in Int4GroupLinear.",
    inputs=(TensorSpec("x", ACT, ("B", "L", "K")), *_weight("weight", "V")),
    outputs=(TensorSpec("logits", F32, ("B", "L", "V")),),
    attributes={"group_size": int},
    reference=int4_lm_head,
)

INT4_ATTENTION_PROJECTIONS = OpSpec(
    name="Int4AttentionProjections",
    doc="q, k, v = x W^T for the three int4 weights of an attention layer, of one group size.",
    inputs=(_X, *_weight("q", "Nq"), *_weight("k", "Nk"), *_weight("v", "Nv")),
    outputs=tuple(TensorSpec(name, ACT, ("B", "T", f"N{name}")) for name in "qkv"),
    attributes={"group_size": int},
    reference=int4_attention_projections,
)

INT4_DELTA_NET_PROJECTIONS = OpSpec(
    name="Int4DeltaNetProjections",
    doc="qkv, z, a, b = x W^T: the first two weights int4, of one group size, the others plain.",
    inputs=(
        _X,
        *_weight("qkv", "Nqkv"),
        *_weight("z", "Nz"),
        TensorSpec("a_weight", STORED, ("Ha", "K")),
        TensorSpec("b_weight", STORED, ("Hb", "K")),
    ),
    outputs=(
        TensorSpec("qkv", ACT, ("B", "T", "Nqkv")),
        TensorSpec("z", ACT, ("B", "T", "Nz")),
        TensorSpec("a", ACT, ("B", "T", "Ha")),
        TensorSpec("b", ACT, ("B", "T", "Hb")),
    ),
    attributes={"group_size": int},
    reference=int4_delta_net_projections,
)
