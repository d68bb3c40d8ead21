"""Chains of nodes that a plugin computes in one launch, found in an inlined graph and replaced by its node.

Nodes that only fed a replaced chain are dropped. What feeds something else besides stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TypeGuard

import onnx

from deltart.plugins.fp8_linear.op import (
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    FP8_BLOCK_GATE_UP,
    FP8_BLOCK_LINEAR,
)
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.lm_head.op import LM_HEAD
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.spec import DOMAIN

LINEAR_EQUATION = b"btk,nk->btn"
# The op of some linears of one x, by how many are block FP8 and how many are plain.
PROJECTIONS = {(3, 0): ATTENTION_PROJECTIONS.name, (2, 2): DELTA_NET_PROJECTIONS.name}

Nodes = list[onnx.NodeProto]
Producers = Mapping[str, onnx.NodeProto]


def fuse(nodes: Nodes, results: Sequence[str]) -> Nodes:
    """`nodes`, sorted so that they can run, with every known chain replaced; `results` are the graph's outputs."""
    producers = {output: node for node in nodes for output in node.output}
    fused: Nodes = []
    for node in nodes:
        fused += (
            gate_up(node, producers) or lm_head(node, producers, results) or qk_norm_rope(node, producers) or [node]
        )
    return projections(_needed(fused, results))


def projections(nodes: Nodes) -> Nodes:
    """`nodes` with the linears that read one x as one node: three block FP8, or two and two plain ones."""
    made = {output for node in nodes for output in node.output}
    by_x: dict[str, Nodes] = {}
    for node in nodes:
        if node.op_type == FP8_BLOCK_LINEAR.name or (_is_linear(node) and node.input[1] not in made):
            by_x.setdefault(node.input[0], []).append(node)
    joined: dict[str, onnx.NodeProto] = {}  # by the name of the first node
    replaced: set[str] = set()
    for members in by_x.values():
        fp8 = [node for node in members if node.op_type == FP8_BLOCK_LINEAR.name]
        ordered = fp8 + [node for node in members if node.op_type != FP8_BLOCK_LINEAR.name]
        op = PROJECTIONS.get((len(fp8), len(members) - len(fp8)))
        if op:
            weights = [name for node in ordered for name in node.input[1:]]
            outputs = [node.output[0] for node in ordered]
            joined[members[0].name] = _composite(op, members[0].name, [members[0].input[0], *weights], outputs)
            joined[members[0].name].attribute.extend(fp8[0].attribute)
            replaced |= {node.name for node in members}
    return [joined.get(n.name, n) for n in nodes if n.name in joined or n.name not in replaced]


def gate_up(node: onnx.NodeProto, producers: Producers) -> Nodes:
    """silu(x W^T) * (x U^T), both block FP8."""
    if node.op_type != "Mul":
        return []
    for activated, other in permutations(node.input):
        silu, up = producers.get(activated), producers.get(other)
        gate = _silu_of(silu, producers)
        linear = FP8_BLOCK_LINEAR.name
        if _is(gate, linear) and _is(up, linear) and gate.input[0] == up.input[0]:
            made = _composite(FP8_BLOCK_GATE_UP.name, node.name, [*gate.input, *up.input[1:]], node.output)
            made.attribute.extend(gate.attribute)
            return [made]
    return []


def _silu_of(node: onnx.NodeProto | None, producers: Producers) -> onnx.NodeProto | None:
    """The producer of x in x * sigmoid(x)."""
    if not _is(node, "Mul"):
        return None
    for x, opened in permutations(node.input):
        sigmoid = producers.get(opened)
        if _is(sigmoid, "Sigmoid") and sigmoid.input[0] == x:
            return producers.get(x)
    return None


def lm_head(node: onnx.NodeProto, producers: Producers, results: Sequence[str]) -> Nodes:
    """A contraction with a stored weight whose result leaves the graph, in f32."""
    if node.output[0] not in results:
        return []
    last = producers.get(node.input[0]) if node.op_type == "Cast" else node
    if last is None or not _is_linear(last) or last.input[1] in producers:
        return []
    return [_composite(LM_HEAD.name, node.name, last.input, node.output)]


def qk_norm_rope(attention: onnx.NodeProto, producers: Producers) -> Nodes:
    """What lies between the projections of an attention layer and the attention itself."""
    if not _is(attention, GATED_ATTENTION.name):
        return []
    q, k = (_walk(attention.input[i], producers, "RotaryEmbedding", "Reshape", "RMSNormalization") for i in (0, 1))
    gate = _walk(attention.input[3], producers, "Reshape", "Slice", "Reshape")
    if not q or not k or not gate or q[0].input[1:] != k[0].input[1:]:
        return []
    split = _walk(q[-1].input[0], producers, "Slice", "Reshape")
    heads = _walk(k[-1].input[0], producers, "Reshape")
    weights = [_norm_weight(chain[-1], producers) for chain in (q, k)]
    if not split or not heads or split[-1] is not gate[-1] or None in weights:
        return []
    head_dim = next(a.i for a in attention.attribute if a.name == "head_dim")
    if [_constant(half.input[1], producers) for half in (split[0], gate[1])] != [[0], [head_dim]]:
        return []
    inputs = [split[-1].input[0], heads[0].input[0], *(str(w) for w in weights), *q[0].input[1:3]]
    outputs = [attention.input[0], attention.input[1], attention.input[3]]
    made = _composite(QK_NORM_ROPE.name, f"{attention.name}/qk_norm_rope", inputs, outputs)
    made.attribute.extend(attention.attribute)
    made.attribute.extend(a for a in q[-1].attribute if a.name == "epsilon")
    return [made, attention]


def _norm_weight(norm: onnx.NodeProto, producers: Producers) -> str | None:
    """The stored w of a norm that multiplies by 1 + w; None where it is not of that form."""
    added = _walk(norm.input[1], producers, "Add")
    return _source(added[0].input[0], producers) if added else None


def _constant(name: str, producers: Producers) -> list[int] | None:
    node = producers.get(name)
    if node is None or node.op_type != "Constant":
        return None
    values: list[int] = onnx.numpy_helper.to_array(node.attribute[0].t).tolist()
    return values


def _walk(name: str, producers: Producers, *ops: str) -> Nodes:
    """The nodes of these types, each making the first input of the one before, casts aside; empty where they differ."""
    found: Nodes = []
    for op in ops:
        node = producers.get(_source(name, producers))
        if node is None or node.op_type != op:
            return []
        found.append(node)
        name = node.input[0]
    return found


def _source(name: str, producers: Producers) -> str:
    """The value behind a chain of casts; a fused op computes in f32 what they round in between."""
    node = producers.get(name)
    while node is not None and node.op_type == "Cast":
        name = node.input[0]
        node = producers.get(name)
    return name


def _is_linear(node: onnx.NodeProto) -> bool:
    return node.op_type == "Einsum" and node.attribute[0].s == LINEAR_EQUATION


def _is(node: onnx.NodeProto | None, op: str) -> TypeGuard[onnx.NodeProto]:
    return node is not None and node.op_type == op


def _composite(op: str, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    return onnx.helper.make_node(op, list(inputs), list(outputs), name, domain=DOMAIN)


def _needed(nodes: Nodes, results: Sequence[str]) -> Nodes:
    """The nodes that `results` depend on, in their order; of two that make one value the later, its replacement."""
    wanted, made, kept = set(results), set[str](), []
    for node in reversed(nodes):
        fresh = set(node.output) - made
        if fresh & wanted:
            kept.append(node)
            made |= fresh
            wanted.update(node.input)
    return kept[::-1]
