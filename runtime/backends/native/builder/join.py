"""Neighbouring nodes that one kernel computes in calls of a few tokens, whose launches cost as much as their work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from deltart.plugins.causal_conv1d.op import CAUSAL_CONV1D
from deltart.plugins.fp8_linear.activations import ATTRIBUTE
from deltart.plugins.fp8_linear.inputs import Shape as LinearShape
from deltart.plugins.fp8_linear.norm import can_join as norm_joins_linear
from deltart.plugins.fp8_linear.op import FP8_BLOCK_LINEAR, FP8_LINEAR_NORM
from deltart.plugins.gated_attention.inputs import Shape as AttentionShape
from deltart.plugins.gated_attention.op import GATED_ATTENTION, ROPE_GATED_ATTENTION
from deltart.plugins.gated_attention.rope import can_join as rope_joins_attention
from deltart.plugins.gated_delta_rule.inputs import Shape as DeltaShape
from deltart.plugins.gated_delta_rule.norm import TAPS
from deltart.plugins.gated_delta_rule.norm import can_join as norm_joins_delta_rule
from deltart.plugins.gated_delta_rule.op import CONV_GATED_DELTA_NORM, GATED_DELTA_NORM, GATED_DELTA_RULE
from deltart.plugins.gated_rms_norm.op import GATED_RMS_NORM
from deltart.plugins.int4_linear.inputs import Shape as Int4Shape
from deltart.plugins.int4_linear.norm import can_join as norm_joins_int4
from deltart.plugins.int4_linear.op import INT4_GROUP_LINEAR, INT4_LINEAR_NORM
from deltart.plugins.moe_experts.inputs import Shape as ExpertsShape
from deltart.plugins.moe_experts.norm import can_join as norm_joins_experts
from deltart.plugins.moe_experts.op import FP8_SPARSE_MOE, SPARSE_MOE, WITH_NORM
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.residual_rms_norm.op import RESIDUAL_RMS_NORM
from deltart.plugins.spec import DOMAIN, OpSpec
from deltart.runtime.backends.gpu.engine_manifest import Binding

ARRIVED = "/arrived"  # counts of blocks that are done, of every launch in turn: 0 between them
Nodes = Sequence[onnx.NodeProto]
Border = Mapping[str, Binding]


@dataclass(frozen=True)
class Pair:
    """Two ops as one.

    Args:
        fits: whether a node of `first` lets them, its inputs from the border, in the largest call.
        counts: how many counts of blocks the one takes at most, of a node of `second` in the largest call; 0 for none.
        links: which outputs of `first`, by number, are which inputs of `second`, and read by nothing else; its other
            outputs stay.
    """

    first: OpSpec
    second: OpSpec
    one: OpSpec
    fits: Callable[[onnx.NodeProto, Border, Mapping[str, int]], bool]
    counts: Callable[[onnx.NodeProto, Mapping[str, int]], int] = lambda node, largest: 0
    links: Mapping[int, int] = field(default_factory=lambda: {0: 0})

    def join(self, first: onnx.NodeProto, second: onnx.NodeProto, counts: int) -> onnx.NodeProto:
        """The node in place of both."""
        others = [name for number, name in enumerate(second.input) if number not in self.links.values()]
        inputs = [*first.input, *others, *([ARRIVED] if counts else [])]
        outputs = [*second.output, *(name for number, name in enumerate(first.output) if number not in self.links)]
        attributes = _attributes(first) | _attributes(second)
        kept = {name: attributes[name] for name in self.one.attributes}
        return onnx.helper.make_node(self.one.name, inputs, outputs, first.name, domain=DOMAIN, **kept)


def joined(nodes: Nodes, border: Border, results: Sequence[str], largest: Mapping[str, int]) -> list[onnx.NodeProto]:
    """`nodes` with every pair as one, where the largest call, of `largest` by axis, lets it and nothing else reads what
    lies between."""
    made, most = list(nodes), 0
    for pair in PAIRS:
        made, counts = _paired(pair, made, border, results, largest)
        most = max(most, counts)
    if not most:
        return made
    zeros = onnx.numpy_helper.from_array(np.zeros(most, np.int32))
    return [onnx.helper.make_node("Constant", [], [ARRIVED], ARRIVED, value=zeros), *made]


def _paired(
    pair: Pair, nodes: Nodes, border: Border, results: Sequence[str], largest: Mapping[str, int]
) -> tuple[list[onnx.NodeProto], int]:
    """The nodes, and the most counts that one of them takes."""
    readers = Counter(name for node in nodes for name in node.input)
    firsts = {
        node.output[0]: node
        for node in nodes
        if node.op_type == pair.first.name
        and all(readers[node.output[number]] == 1 and node.output[number] not in results for number in pair.links)
        and pair.fits(node, border, largest)
    }
    made: list[onnx.NodeProto] = []
    most = 0
    for node in nodes:
        first = firsts.get(node.input[pair.links[0]]) if node.op_type == pair.second.name else None
        if first is not None and all(first.output[out] == node.input[into] for out, into in pair.links.items()):
            made = [other for other in made if other is not first]
            counts = pair.counts(node, largest)
            most, node = max(most, counts), pair.join(first, node, counts)
        made.append(node)
    return made, most


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _linear_fits(linear: onnx.NodeProto, border: Border, largest: Mapping[str, int]) -> bool:
    n, k = border[linear.input[1]].axes
    shape = LinearShape(1, largest["B"] * largest["T"], int(n), int(k))
    return norm_joins_linear(shape) and not _attributes(linear).get(ATTRIBUTE)


def _int4_fits(linear: onnx.NodeProto, border: Border, largest: Mapping[str, int]) -> bool:
    n, groups, half = map(int, border[linear.input[1]].axes)
    return norm_joins_int4(Int4Shape(1, largest["B"] * largest["T"], n, groups * half * 2, half * 2))


def _experts_fit(experts: onnx.NodeProto, border: Border, largest: Mapping[str, int]) -> bool:
    given, has_shared = _attributes(experts), experts.op_type in (SPARSE_MOE.name, FP8_SPARSE_MOE.name)
    width = given["intermediate_size"]
    shape = ExpertsShape(
        tokens=largest["B"] * largest["T"],
        hidden=given["hidden_size"],
        chosen=given["num_experts_per_tok"],
        width=width,
        shared=width if has_shared else 0,  # how wide it is makes no difference
    )
    return norm_joins_experts(shape) and not given.get(ATTRIBUTE)


def _delta_rule_fits(rule: onnx.NodeProto, border: Border, largest: Mapping[str, int]) -> bool:
    return norm_joins_delta_rule(DeltaShape(tokens=largest["T"], value_dim=_attributes(rule)["head_v_dim"]))


def _conv_fits(conv: onnx.NodeProto, border: Border, largest: Mapping[str, int]) -> bool:
    return int(border[conv.input[1]].axes[2]) == TAPS


def _rope_fits(rope: onnx.NodeProto, border: Border, largest: Mapping[str, int]) -> bool:
    heads = {name: _attributes(rope)[name] for name in ("num_heads", "num_kv_heads", "head_dim")}
    return rope_joins_attention(AttentionShape(1, largest["T"], *heads.values()))


PAIRS = (
    Pair(FP8_BLOCK_LINEAR, RESIDUAL_RMS_NORM, FP8_LINEAR_NORM, _linear_fits, lambda node, largest: 1),
    Pair(INT4_GROUP_LINEAR, RESIDUAL_RMS_NORM, INT4_LINEAR_NORM, _int4_fits, lambda node, largest: 1),
    *(Pair(experts, RESIDUAL_RMS_NORM, one, _experts_fit, lambda node, largest: 1) for experts, one in WITH_NORM),
    Pair(GATED_DELTA_RULE, GATED_RMS_NORM, GATED_DELTA_NORM, _delta_rule_fits),
    Pair(
        CAUSAL_CONV1D,
        GATED_DELTA_NORM,
        CONV_GATED_DELTA_NORM,
        _conv_fits,
        lambda node, largest: largest["B"] * int(_attributes(node)["num_k_heads"]),
    ),
    Pair(
        QK_NORM_ROPE,
        GATED_ATTENTION,
        ROPE_GATED_ATTENTION,
        _rope_fits,
        lambda node, largest: largest["B"] * int(_attributes(node)["num_kv_heads"]),
        {0: 0, 1: 1, 2: 3},
    ),
)
