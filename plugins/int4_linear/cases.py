"""Calls of the int4 linears that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from deltart.plugins.cases import PAIRS, SLOTS, OpCall, op_call
from deltart.plugins.int4_linear.op import (
    INT4_ATTENTION_PROJECTIONS,
    INT4_DELTA_NET_PROJECTIONS,
    INT4_GROUP_GATE_UP,
    INT4_GROUP_LINEAR,
    INT4_LM_HEAD,
)
from deltart.plugins.spec import OpSpec

GROUPS = (16, 32, 64, 128, 256)
TOKENS = (0, 1, 8, 9, 16, 17, 32, 63, 64, 65, 128, 1000)
HALF = ("bf16", "f16")  # types, as those of PAIRS
WIDTHS = (256, 1280, 5120, 17408)


def _sizes(k: int, group: int) -> dict[str, int]:
    return {"K": k, "groups": k // group, "group_bytes": group // 2}


def linears(spec: OpSpec) -> Iterator[OpCall]:
    """Cases of an op of one N; some are refused."""
    shapes = (1, 129, 1024, 5120, 16368, 17408, 32752)
    for b, t, n, k, group, types in product(SLOTS, TOKENS, shapes, WIDTHS, (32, 128), PAIRS):
        yield op_call(spec, {"B": b, "T": t, "N": n, **_sizes(k, group)}, {"group_size": group}, types)
    for t, k, group, types in product((1, 65), (0, 96, 768, 800, 1024), GROUPS, (PAIRS[0], HALF)):
        yield op_call(spec, {"B": 2, "T": t, "N": 48, **_sizes(k, group)}, {"group_size": group}, types)


def _first(spec: OpSpec) -> OpCall:
    return next(linears(spec))


def int4_group_linear() -> Iterator[OpCall]:
    for one in linears(INT4_GROUP_LINEAR):
        yield replace(one, attributes={"K": one.sizes["K"], "N": one.sizes["N"], **one.attributes})


def int4_group_gate_up() -> Iterator[OpCall]:
    yield from linears(INT4_GROUP_GATE_UP)
    mixed = _first(INT4_GROUP_GATE_UP)
    yield replace(mixed, dtypes={**mixed.dtypes, "up_scale": "f32"})


def int4_lm_head() -> Iterator[OpCall]:
    for b, rows, v, k, group, types in product(SLOTS, (1, 2, 8, 9), (1, 129, 248320), WIDTHS, GROUPS, PAIRS):
        yield op_call(INT4_LM_HEAD, {"B": b, "L": rows, "V": v, **_sizes(k, group)}, {"group_size": group}, types)
    yield op_call(INT4_LM_HEAD, {"B": 1, "L": 1, "V": 129, **_sizes(256, 32)}, {"group_size": 32}, HALF)


def projections(spec: OpSpec, names: tuple[str, ...]) -> Iterator[OpCall]:
    """Cases of an op of several linears; `names` are the axes of their widths."""
    widths = ((12288, 1024, 1024, 48), (10240, 6144, 48, 48), (200, 16, 129, 3), (128, 0, 16, 1), (32640, 96, 16, 16))
    for b, t, width, k, group, types in product(SLOTS, TOKENS, widths, WIDTHS, (32, 128), PAIRS):
        sizes = {"B": b, "T": t, **_sizes(k, group), **dict(zip(names, width, strict=False))}
        yield op_call(spec, sizes, {"group_size": group}, types)


def int4_attention_projections() -> Iterator[OpCall]:
    yield from projections(INT4_ATTENTION_PROJECTIONS, ("Nq", "Nk", "Nv"))
    mixed = next(projections(INT4_ATTENTION_PROJECTIONS, ("Nq", "Nk", "Nv")))
    yield replace(mixed, dtypes={**mixed.dtypes, "v_scale": "f32"})
    yield replace(mixed, dtypes={**mixed.dtypes, "q_scale": "f16", "k_scale": "f16", "v_scale": "f16"})


def int4_delta_net_projections() -> Iterator[OpCall]:
    """The plain weights are bf16 where the scales are f32, too."""
    for one in projections(INT4_DELTA_NET_PROJECTIONS, ("Nqkv", "Nz", "Ha", "Hb")):
        yield one
        if one.dtypes["qkv_scale"] == "bf16" and one.sizes["K"] == 256:
            yield replace(one, dtypes={**one.dtypes, "qkv_scale": "f16", "z_scale": "f16"})
        if one.dtypes["qkv_scale"] == "f32" and one.sizes["K"] == 256:
            yield replace(one, dtypes={**one.dtypes, "a_weight": "bf16", "b_weight": "bf16"})
            yield replace(one, dtypes={**one.dtypes, "a_weight": "bf16"})


CALLS = {
    "Int4GroupLinear": int4_group_linear,
    "Int4GroupGateUp": int4_group_gate_up,
    "Int4LmHead": int4_lm_head,
    "Int4AttentionProjections": int4_attention_projections,
    "Int4DeltaNetProjections": int4_delta_net_projections,
}
