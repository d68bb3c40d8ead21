"""Calls for which the C++ launches are compared with Python's: sizes that are odd, at every threshold, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product

from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.fp8_linear.inputs import SHAPES_27B
from deltart.plugins.fp8_linear.op import (
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    FP8_BLOCK_GATE_UP,
    FP8_BLOCK_LINEAR,
)
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.gated_delta_rule.op import GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.lm_head.op import LM_HEAD
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.spec import ACT, F32, FP8, I32, STORED, OpSpec
from support.native import Case

LIMIT = 99 << 10  # of the small GPUs
LIMITS = (48 << 10, LIMIT, 163 << 10, 227 << 10)
SLOTS = (1, 7, 8, 64)
PAIRS = tuple(product(("bf16", "f32"), repeat=2))  # of activations and stored weights


def case(
    spec: OpSpec, sizes: Mapping[str, int], attributes: Mapping[str, int | float], types: tuple[str, str], limit: int
) -> Case:
    """A case with the types that its dtype classes allow; `types` are those of activations and stored weights."""
    kinds = {ACT: types[0], STORED: types[1], FP8: "i8", F32: "f32", I32: "i32"}
    return Case(spec, sizes, attributes, {t.name: kinds[t.dtype] for t in spec.inputs}, limit)


def causal_conv1d() -> Iterator[Case]:
    tokens, channels = (0, 1, 2, 8, 9, 15, 16, 17, 33, 100, 5000), (4, 8, 12, 64, 256, 1000, 10240, 10241)
    for b, t, c, types in product(SLOTS, tokens, channels, PAIRS):
        yield case(CAUSAL_CONV1D, {"B": b, "T": t, "C": c, "1": 1, "W": 4, "W-1": 3}, {}, types, LIMIT)


def fp8_linear(spec: OpSpec) -> Iterator[Case]:
    tokens = (0, 1, 2, 4, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 128, 1000)
    odd = ((1, 16), (200, 192), (129, 144), (128, 130), (0, 128), (32752, 256), (16368, 256))
    split = ((128, 256), (128, 1152), (128, 1280))  # K where one more part begins to pay
    for b, t, (n, k), types in product(SLOTS, tokens, (*sorted(set(SHAPES_27B.values())), *odd, *split), PAIRS):
        sizes = {"B": b, "T": t, "N": n, "K": k, "N_blocks": -(-n // 128), "K_blocks": -(-k // 128)}
        for quantize, (capability, multiprocessors) in ((0, (89, 58)), (1, (89, 58)), (1, (90, 132)), (1, (90, 114))):
            one = case(spec, sizes, {"quantize_activations": quantize}, types, LIMIT)
            yield replace(one, capability=capability, multiprocessors=multiprocessors)


def fp8_block_linear() -> Iterator[Case]:
    return fp8_linear(FP8_BLOCK_LINEAR)


def fp8_block_gate_up() -> Iterator[Case]:
    yield from fp8_linear(FP8_BLOCK_GATE_UP)
    mixed = next(fp8_linear(FP8_BLOCK_GATE_UP))
    yield replace(mixed, dtypes={**mixed.dtypes, "up_weight_scale_inv": "f32"})


def projections(spec: OpSpec, names: tuple[str, ...]) -> Iterator[Case]:
    """Cases of an op of several linears; `names` are the axes of their widths."""
    tokens = (0, 1, 8, 9, 16, 17, 32, 63, 64, 65, 1000)
    widths = ((12288, 1024, 1024, 48), (10240, 6144, 48, 48), (200, 16, 129, 3), (128, 0, 16, 1), (32640, 96, 16, 16))
    for b, t, width, k, types in product(SLOTS, tokens, widths, (16, 256, 5120, 130), PAIRS):
        sizes = {"B": b, "T": t, "K": k, "K_blocks": -(-k // 128)}
        for name, n in zip(names, width, strict=False):
            sizes |= {name: n, f"{name}_blocks": -(-n // 128)}
        for quantize, capability in ((0, 89), (1, 89), (1, 90)):
            yield replace(case(spec, sizes, {"quantize_activations": quantize}, types, LIMIT), capability=capability)


def attention_projections() -> Iterator[Case]:
    yield from projections(ATTENTION_PROJECTIONS, ("Nq", "Nk", "Nv"))
    mixed = next(projections(ATTENTION_PROJECTIONS, ("Nq", "Nk", "Nv")))
    yield replace(mixed, dtypes={**mixed.dtypes, "v_scale_inv": "f32"})


def delta_net_projections() -> Iterator[Case]:
    """The plain weights are bf16 where the scales are f32, too."""
    for one in projections(DELTA_NET_PROJECTIONS, ("Nqkv", "Nz", "Ha", "Hb")):
        yield one
        if one.dtypes["qkv_scale_inv"] == "f32" and one.sizes["K"] == 256:
            yield replace(one, dtypes={**one.dtypes, "a_weight": "bf16", "b_weight": "bf16"})
            yield replace(one, dtypes={**one.dtypes, "a_weight": "bf16"})


def lm_head() -> Iterator[Case]:
    rows, vocabularies, widths = (1, 2, 8, 9, 16), (1, 127, 128, 129, 2560, 248320), (16, 128, 130, 5120)
    for b, rows_of_slot, v, k, types in product(SLOTS, rows, vocabularies, widths, PAIRS):
        yield case(LM_HEAD, {"B": b, "L": rows_of_slot, "V": v, "K": k}, {}, types, LIMIT)


def qk_norm_rope() -> Iterator[Case]:
    heads, widths = (
        ((24, 4), (16, 2), (1, 1), (3, 1)),
        ((256, 32), (64, 8), (64, 32), (128, 4), (60, 8), (264, 8), (64, 40)),
    )
    for b, t, (h, kv), (d, p), eps, types in product(SLOTS, (1, 3, 8, 1000), heads, widths, (1e-6, 3e-5), PAIRS):
        sizes = {"B": b, "T": t, "Nqg": 2 * h * d, "Nkv": kv * d, "P": p}
        attributes = {"num_heads": h, "num_kv_heads": kv, "head_dim": d, "epsilon": eps}
        yield case(QK_NORM_ROPE, sizes, attributes, types, LIMIT)
    mixed = case(QK_NORM_ROPE, sizes, attributes, PAIRS[0], LIMIT)
    yield replace(mixed, dtypes={**mixed.dtypes, "k_weight": "f32"})


def gated_attention() -> Iterator[Case]:
    tokens, heads = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 48, 49, 200), ((24, 4), (16, 2), (6, 2), (1, 1), (16, 1), (9, 9))
    refused = ((5, 2), (34, 2))
    for b, t, (h, kv), d, types in product(SLOTS, tokens, heads + refused, (64, 96, 128, 256), PAIRS[1:3]):
        sizes = {"B": b, "T": t, "Nq": h * d, "Nkv": kv * d, "capacity": 64 * b + 4000}
        attributes = {"num_heads": h, "num_kv_heads": kv, "head_dim": d}
        yield case(GATED_ATTENTION, sizes, attributes, types, LIMIT)


def gated_delta_rule() -> Iterator[Case]:
    tokens, heads = (0, 1, 8, 9, 33, 64, 65, 1000, 2049), ((16, 48), (1, 3), (16, 32), (3, 4))
    widths = ((128, 128), (64, 1024), (64, 16), (128, 32), (128, 8), (128, 12))
    for b, t, (hk, hv), (dk, dv), types in product((1, 7, 8, 85), tokens, heads, widths, PAIRS):
        attributes = {"num_k_heads": hk, "num_v_heads": hv, "head_k_dim": dk, "head_v_dim": dv}
        for limit in LIMITS if t > 8 else LIMITS[:1]:
            sizes = {"B": b, "T": t, "C": 2 * hk * dk + hv * dv}
            yield case(GATED_DELTA_RULE, sizes, attributes, types, limit)


def gated_rms_norm() -> Iterator[Case]:
    for b, t, heads, d, eps, types in product(
        SLOTS, (1, 3, 8, 1000), (1, 3, 48), (4, 6, 64, 128, 256, 512, 516), (1e-6, 3e-5), PAIRS
    ):
        yield case(GATED_RMS_NORM, {"B": b, "T": t, "N": heads * d, "D": d}, {"epsilon": eps}, types, LIMIT)


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "AttentionProjections": attention_projections,
    "CausalConv1d": causal_conv1d,
    "DeltaNetProjections": delta_net_projections,
    "Fp8BlockGateUp": fp8_block_gate_up,
    "Fp8BlockLinear": fp8_block_linear,
    "GatedAttention": gated_attention,
    "GatedDeltaRule": gated_delta_rule,
    "GatedRMSNorm": gated_rms_norm,
    "LmHead": lm_head,
    "QkNormRope": qk_norm_rope,
}
