"""Contract of routed experts whose weights are symmetric int4 in groups, as compressed-tensors packs them."""

from deltart.plugins.int4_experts.reference import int4_moe_experts
from deltart.plugins.moe_experts.op import MIXED, SIZES, TOKENS
from deltart.plugins.spec import ACT, I32, SCALE, U8, OpSpec, TensorSpec

INT4_MOE_EXPERTS = OpSpec(
    name="Int4MoeExperts",
    doc=f"""y as in MoeExperts, over {MIXED}, of experts in int4 with a scale per group_size values of a row.

    Slot s of `experts` holds down, gate and up of expert slot_expert[s], row by row, two values a byte as in
    Int4GroupLinear, and `experts_scale` their scales. Experts that are in no slot add nothing.""",
    inputs=(
        *TOKENS,
        TensorSpec("experts", U8, ("S", "parts", "bytes")),
        TensorSpec("experts_scale", SCALE, ("S", "parts", "groups")),
        TensorSpec("slot_expert", I32, ("S",)),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "hidden_size")),),
    attributes={**SIZES, "group_size": int},
    reference=int4_moe_experts,
)
