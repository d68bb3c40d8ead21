"""Contracts of the linears whose weights are E4M3 with one scale per 128 x 128 block: alone, gated in pairs, together.

With `quantize_activations` = 1, or 2 on GPUs that multiply E4M3 (activations.py), x is rounded to E4M3 first, with a
scale of amax / 448 per token and 128 of K (W8A8); with 0 it is taken as it is (W8A16).
"""

from deltart.plugins.fp8_linear.reference import (
    attention_projections,
    delta_net_projections,
    fp8_block_gate_up,
    fp8_block_linear,
    fp8_linear_norm,
)
from deltart.plugins.spec import ACT, FP8, I32, STORED, OpSpec, TensorSpec

FP8_BLOCK_LINEAR = OpSpec(
    name="Fp8BlockLinear",
    doc="y = x W^T with W = weight * weight_scale_inv, one scale per 128 x 128 block; x may be quantized first.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight", FP8, ("N", "K")),
        TensorSpec("weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    attributes={"quantize_activations": int},
    reference=fp8_block_linear,
)

FP8_BLOCK_GATE_UP = OpSpec(
    name="Fp8BlockGateUp",
    doc="y = silu(x W^T) * (x U^T), W and U as in Fp8BlockLinear.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight", FP8, ("N", "K")),
        TensorSpec("weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
        TensorSpec("up_weight", FP8, ("N", "K")),
        TensorSpec("up_weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
    ),
    outputs=(TensorSpec("y", ACT, ("B", "T", "N")),),
    attributes={"quantize_activations": int},
    reference=fp8_block_gate_up,
)

FP8_LINEAR_NORM = OpSpec(
    name="Fp8LinearNorm",
    doc="sum = h + x W^T, W as in Fp8BlockLinear; normed = (1 + norm_weight) * sum / rms(sum). For few tokens.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("weight", FP8, ("N", "K")),
        TensorSpec("weight_scale_inv", STORED, ("N_blocks", "K_blocks")),
        TensorSpec("h", ACT, ("B", "T", "N")),
        TensorSpec("norm_weight", STORED, ("N",)),
        TensorSpec("arrived", I32, ("1",)),  # 0 before and after
    ),
    outputs=(TensorSpec("normed", ACT, ("B", "T", "N")), TensorSpec("sum", ACT, ("B", "T", "N"))),
    attributes={"epsilon": float},
    reference=fp8_linear_norm,
)

ATTENTION_PROJECTIONS = OpSpec(
    name="AttentionProjections",
    doc="q, k, v = x W^T for the three block-FP8 weights of an attention layer.",
    inputs=(
        TensorSpec("x", ACT, ("B", "T", "K")),
        TensorSpec("q_weight", FP8, ("Nq", "K")),
        TensorSpec("q_scale_inv", STORED, ("Nq_blocks", "K_blocks")),
        TensorSpec("k_weight", FP8, ("Nk", "K")),
        TensorSpec("k_scale_inv", STORED, ("Nk_blocks", "K_blocks")),
        TensorSpec("v_weight", FP8, ("Nv", "K")),
        TensorSpec("v_scale_inv", STORED, ("Nv_blocks", "K_blocks")),
    ),
    outputs=(
        TensorSpec("q", ACT, ("B", "T", "Nq")),
        TensorSpec("k", ACT, ("B", "T", "Nk")),
        TensorSpec("v", ACT, ("B", "T", "Nv")),
    ),
    attributes={"quantize_activations": int},
    reference=attention_projections,
)

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
