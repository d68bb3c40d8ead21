"""Calls of the block-FP8 linears that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from deltart.plugins.cases import PAIRS, SLOTS, OpCall, op_call
from deltart.plugins.fp8_linear.inputs import SHAPES_27B
from deltart.plugins.fp8_linear.op import (
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    FP8_BLOCK_GATE_UP,
    FP8_BLOCK_LINEAR,
)
from deltart.plugins.spec import OpSpec


def fp8_linear(spec: OpSpec) -> Iterator[OpCall]:
    tokens = (0, 1, 2, 4, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 128, 1000)
    odd = ((1, 16), (200, 192), (129, 144), (128, 130), (0, 128), (32752, 256), (16368, 256))
    split = ((128, 256), (128, 1152), (128, 1280))  # K where one more part begins to pay
    for b, t, (n, k), types in product(SLOTS, tokens, (*sorted(set(SHAPES_27B.values())), *odd, *split), PAIRS):
        sizes = {"B": b, "T": t, "N": n, "K": k, "N_blocks": -(-n // 128), "K_blocks": -(-k // 128)}
        for quantize, (capability, multiprocessors) in ((0, (89, 58)), (1, (89, 58)), (1, (90, 132)), (1, (90, 114))):
            one = op_call(spec, sizes, {"quantize_activations": quantize}, types)
            yield replace(one, capability=capability, multiprocessors=multiprocessors)


def fp8_block_linear() -> Iterator[OpCall]:
    return fp8_linear(FP8_BLOCK_LINEAR)


def fp8_block_gate_up() -> Iterator[OpCall]:
    yield from fp8_linear(FP8_BLOCK_GATE_UP)
    mixed = next(fp8_linear(FP8_BLOCK_GATE_UP))
    yield replace(mixed, dtypes={**mixed.dtypes, "up_weight_scale_inv": "f32"})


def projections(spec: OpSpec, names: tuple[str, ...]) -> Iterator[OpCall]:
    """Cases of an op of several linears; `names` are the axes of their widths."""
    tokens = (0, 1, 8, 9, 16, 17, 32, 63, 64, 65, 1000)
    widths = ((12288, 1024, 1024, 48), (10240, 6144, 48, 48), (200, 16, 129, 3), (128, 0, 16, 1), (32640, 96, 16, 16))
    for b, t, width, k, types in product(SLOTS, tokens, widths, (16, 256, 5120, 130), PAIRS):
        sizes = {"B": b, "T": t, "K": k, "K_blocks": -(-k // 128)}
        for name, n in zip(names, width, strict=False):
            sizes |= {name: n, f"{name}_blocks": -(-n // 128)}
        for quantize, capability in ((0, 89), (1, 89), (1, 90)):
            yield replace(op_call(spec, sizes, {"quantize_activations": quantize}, types), capability=capability)


def attention_projections() -> Iterator[OpCall]:
    yield from projections(ATTENTION_PROJECTIONS, ("Nq", "Nk", "Nv"))
    mixed = next(projections(ATTENTION_PROJECTIONS, ("Nq", "Nk", "Nv")))
    yield replace(mixed, dtypes={**mixed.dtypes, "v_scale_inv": "f32"})


def delta_net_projections() -> Iterator[OpCall]:
    """The plain weights are bf16 where the scales are f32, too."""
    for one in projections(DELTA_NET_PROJECTIONS, ("Nqkv", "Nz", "Ha", "Hb")):
        yield one
        if one.dtypes["qkv_scale_inv"] == "f32" and one.sizes["K"] == 256:
            yield replace(one, dtypes={**one.dtypes, "a_weight": "bf16", "b_weight": "bf16"})
            yield replace(one, dtypes={**one.dtypes, "a_weight": "bf16"})


CALLS = {
    "Fp8BlockLinear": fp8_block_linear,
    "Fp8BlockGateUp": fp8_block_gate_up,
    "AttentionProjections": attention_projections,
    "DeltaNetProjections": delta_net_projections,
}
