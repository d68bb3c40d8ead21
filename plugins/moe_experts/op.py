"""Contracts of a sparse MLP: its routed experts, alone and with the shared one, by how weights are stored; and with the
norm behind them."""

from deltart.plugins.moe_experts.reference import (
    fp8_moe_experts,
    fp8_sparse_moe,
    moe_experts,
    sparse_moe,
    with_norm,
)
from deltart.plugins.spec import ACT, F32, FP8, I32, STORED, OpSpec, TensorSpec

TOKENS = (
    TensorSpec("x", ACT, ("B", "T", "hidden_size")),
    TensorSpec("logits", F32, ("B", "T", "E")),
    TensorSpec("n_tokens", I32, ("B",)),
)
SIZES = {"num_experts_per_tok": int, "hidden_size": int, "intermediate_size": int}
FP8_SIZES = {**SIZES, "quantize_activations": int}
MIXED = "the k experts of the largest logits, weighted by the softmax over these; none where t >= n_tokens"

MOE_EXPERTS = OpSpec(
    name="MoeExperts",
    doc=f"y = sum_e w_e * down_e(silu(gate_e x) * (up_e x)) over {MIXED}. gate_up holds the gate's rows first.",
    inputs=(
        *TOKENS,
        TensorSpec("gate_up", STORED, ("E", "gate_up_rows", "hidden_size")),
        TensorSpec("down", STORED, ("E", "hidden_size", "intermediate_size")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "hidden_size")),),
    attributes=SIZES,
    reference=moe_experts,
)

FP8_MOE_EXPERTS = OpSpec(
    name="Fp8MoeExperts",
    doc=f"""y as in MoeExperts, over {MIXED}, of experts that are block-128 FP8.

    Slot s of `experts` holds down, gate and up of expert slot_expert[s], row by row, and `experts_scale` their scales.
    Experts that are in no slot add nothing. With `quantize_activations` = 1, x and what down reads are rounded to E4M3
    first, with a scale of amax / 448 per row and 128 of it.""",
    inputs=(
        *TOKENS,
        TensorSpec("experts", FP8, ("S", "parts", "values")),
        TensorSpec("experts_scale", STORED, ("S", "parts", "blocks")),
        TensorSpec("slot_expert", I32, ("S",)),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "hidden_size")),),
    attributes=FP8_SIZES,
    reference=fp8_moe_experts,
)

SPARSE_MOE = OpSpec(
    name="SparseMoe",
    doc="MoeExperts + sigmoid(x shared_expert_gate^T) * shared_down(silu(shared_gate x) * (shared_up x)).",
    inputs=(
        *MOE_EXPERTS.inputs,
        TensorSpec("shared_gate", STORED, ("shared_size", "hidden_size")),
        TensorSpec("shared_up", STORED, ("shared_size", "hidden_size")),
        TensorSpec("shared_down", STORED, ("hidden_size", "shared_size")),
        TensorSpec("shared_expert_gate", STORED, ("one", "hidden_size")),
    ),
    outputs=MOE_EXPERTS.outputs,
    attributes=SIZES,
    reference=sparse_moe,
)

FP8_SPARSE_MOE = OpSpec(
    name="Fp8SparseMoe",
    doc="As SparseMoe, of Fp8MoeExperts and a shared expert that is block-128 FP8.",
    inputs=(
        *FP8_MOE_EXPERTS.inputs,
        TensorSpec("shared_gate", FP8, ("shared_size", "hidden_size")),
        TensorSpec("shared_gate_scale_inv", STORED, ("shared_blocks", "hidden_blocks")),
        TensorSpec("shared_up", FP8, ("shared_size", "hidden_size")),
        TensorSpec("shared_up_scale_inv", STORED, ("shared_blocks", "hidden_blocks")),
        TensorSpec("shared_down", FP8, ("hidden_size", "shared_size")),
        TensorSpec("shared_down_scale_inv", STORED, ("hidden_blocks", "shared_blocks")),
        TensorSpec("shared_expert_gate", STORED, ("one", "hidden_size")),
    ),
    outputs=FP8_MOE_EXPERTS.outputs,
    attributes=FP8_SIZES,
    reference=fp8_sparse_moe,
)


def _joined(experts: OpSpec) -> OpSpec:
    """`experts` with exact activations and the norm behind them."""
    return OpSpec(
        name=f"{experts.name}Norm",
        doc=f"sum = residual + y of {experts.name}; normed = (1 + norm_weight) * sum / rms(sum). For few tokens.",
        inputs=(
            *experts.inputs,
            TensorSpec("residual", ACT, ("B", "T", "hidden_size")),
            TensorSpec("norm_weight", STORED, ("hidden_size",)),
            TensorSpec("arrived", I32, ("1",)),  # 0 before and after
        ),
        outputs=tuple(TensorSpec(name, ACT, ("B", "T", "hidden_size")) for name in ("normed", "sum")),
        attributes={**SIZES, "epsilon": float},
        reference=with_norm(experts.reference),
    )


MOE_EXPERTS_NORM, FP8_MOE_EXPERTS_NORM = _joined(MOE_EXPERTS), _joined(FP8_MOE_EXPERTS)
SPARSE_MOE_NORM, FP8_SPARSE_MOE_NORM = _joined(SPARSE_MOE), _joined(FP8_SPARSE_MOE)
# An op, and that of few tokens which takes the norm behind it too.
WITH_NORM = (
    (MOE_EXPERTS, MOE_EXPERTS_NORM),
    (FP8_MOE_EXPERTS, FP8_MOE_EXPERTS_NORM),
    (SPARSE_MOE, SPARSE_MOE_NORM),
    (FP8_SPARSE_MOE, FP8_SPARSE_MOE_NORM),
)
