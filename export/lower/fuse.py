"""Chains of nodes that a plugin computes in one launch, found in an inlined graph and replaced by its node.

Nodes that only fed a replaced chain are dropped. What feeds something else besides stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from deltart.export.lower.patterns import Constant, Match, Op, Producers, Value, match
from deltart.plugins.fp8_linear.op import (
    ATTENTION_PROJECTIONS,
    DELTA_NET_PROJECTIONS,
    FP8_BLOCK_GATE_UP,
    FP8_BLOCK_LINEAR,
)
from deltart.plugins.gated_attention.op import GATED_ATTENTION
from deltart.plugins.int4_linear.op import (
    INT4_ATTENTION_PROJECTIONS,
    INT4_DELTA_NET_PROJECTIONS,
    INT4_GROUP_GATE_UP,
    INT4_GROUP_LINEAR,
    INT4_LM_HEAD,
)
from deltart.plugins.lm_head.op import LM_HEAD
from deltart.plugins.moe_experts.op import FP8_MOE_EXPERTS, FP8_SPARSE_MOE, MOE_EXPERTS, SPARSE_MOE
from deltart.plugins.qk_norm_rope.op import QK_NORM_ROPE
from deltart.plugins.spec import DOMAIN, OpSpec

LINEAR_EQUATION = b"btk,nk->btn"
Nodes = list[onnx.NodeProto]


@dataclass(frozen=True)
class Fusion:
    """A pattern and the op that replaces it; the op's attributes are those of the captured nodes.

    Args:
        inputs: captured values, as the op takes them.
        when: what else must hold of what was captured.
        replaces: the inputs of the pattern's root that the op makes, by position; empty where it makes the root's own
            outputs.
        also: captured nodes whose outputs the op makes besides, behind those.
        only_results: whether the root's output must leave the graph.
        through_casts: whether casts on the way are passed over: the op computes in float32 what they round.
    """

    op: OpSpec
    pattern: Op
    inputs: tuple[str, ...]
    when: Callable[[Match], bool] = lambda found: True
    replaces: tuple[int, ...] = ()
    also: tuple[str, ...] = ()
    only_results: bool = False
    through_casts: bool = False

    def apply(self, node: onnx.NodeProto, producers: Producers, results: Sequence[str]) -> Nodes:
        """What stands for `node` where it is the root of the pattern; empty where it is not."""
        if self.only_results and node.output[0] not in results:
            return []
        found = match(self.pattern, node.output[0], producers, self.through_casts)
        if found is None or not self.when(found):
            return []
        outputs = [node.input[i] for i in self.replaces] or list(node.output)
        outputs += [found.nodes[name].output[0] for name in self.also]
        name = f"{node.name}/{self.op.reference.__name__}" if self.replaces else node.name
        made = onnx.helper.make_node(self.op.name, [found.values[i] for i in self.inputs], outputs, name, domain=DOMAIN)
        made.attribute.extend(_attribute(attribute, found.nodes) for attribute in self.op.attributes)
        return [made, node] if self.replaces else [made]


def _attribute(name: str, nodes: Mapping[str, onnx.NodeProto]) -> onnx.AttributeProto:
    return next(a for node in nodes.values() for a in node.attribute if a.name == name)


def _fp8_linear(weight: str, name: str = "") -> Op:
    return Op(FP8_BLOCK_LINEAR.name, (Value("x"), Value(weight), Value(f"{weight}_scale")), name)


def _int4_linear(weight: str, name: str) -> Op:
    return Op(INT4_GROUP_LINEAR.name, (Value("x"), Value(weight), Value(f"{weight}_scale")), name)


def _group_sizes(nodes: Sequence[onnx.NodeProto]) -> set[int]:
    return {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "group_size"}


def _is_linear(node: onnx.NodeProto) -> bool:
    return node.op_type == "Einsum" and node.attribute[0].s == LINEAR_EQUATION


def _is_widening(node: onnx.NodeProto) -> bool:
    return any(a.name == "to" and a.i == onnx.TensorProto.FLOAT for a in node.attribute)


def _normed(x: Op, weight: str, name: str = "") -> Op:
    """RoPE of x / rms(x) * (1 + weight), heads flattened."""
    scale = Op("Add", (Value(weight, uncast=True),))
    norm = Op("RMSNormalization", (x, scale), name)
    return Op("RotaryEmbedding", (Op("Reshape", (norm,)), Value("cos"), Value("sin")))


def silu(x: Value | Op) -> Op:
    """x * sigmoid(x)."""
    return Op("Mul", (x, Op("Sigmoid", (x,))), any_order=True)


def linear(weight: str, name: str = "") -> Op:
    """x W^T with a stored weight."""
    return Op("Einsum", (Value("x"), Value(weight, stored=True)), name, when=_is_linear)


def _experts(op: OpSpec) -> Op:
    return Op(op.name, tuple(Value(tensor.name) for tensor in op.inputs), name="experts")


def _beside(experts: Op, shared: Op) -> Op:
    """Routed experts and, behind its own gate, the shared one."""
    gate = Op("Sigmoid", (linear("shared_expert_gate"),))
    return Op("Add", (experts, Op("Mul", (gate, shared), any_order=True)), any_order=True)


GATE = _fp8_linear("gate", name="gate")
SHARED_GATE, SHARED_FP8_GATE = linear("shared_gate", name="gate"), _fp8_linear("shared_gate", name="gate")
HEADS = Op("Reshape", (Value("q_gate"),), name="heads")  # per head: q, then the gate of its output

FUSIONS = (
    # silu(x W^T) * (x U^T)
    Fusion(
        FP8_BLOCK_GATE_UP,
        Op("Mul", (silu(GATE), _fp8_linear("up")), any_order=True),
        ("x", "gate", "gate_scale", "up", "up_scale"),
    ),
    Fusion(
        INT4_GROUP_GATE_UP,
        Op("Mul", (silu(_int4_linear("gate", name="gate")), _int4_linear("up", name="up")), any_order=True),
        ("x", "gate", "gate_scale", "up", "up_scale"),
        when=lambda found: len(_group_sizes([found.nodes["gate"], found.nodes["up"]])) == 1,
    ),
    # Logits: a linear with a stored weight whose result leaves the graph, in f32.
    Fusion(
        INT4_LM_HEAD,
        _int4_linear("weight", name="head"),
        ("x", "weight", "weight_scale"),
        only_results=True,
        through_casts=True,
    ),
    Fusion(
        LM_HEAD,
        Op("Einsum", (Value("x"), Value("weight", stored=True)), when=_is_linear),
        ("x", "weight"),
        only_results=True,
        through_casts=True,
    ),
    # A router's logits: both sides of the product were widened to f32, which is what the op sums in.
    Fusion(
        LM_HEAD,
        Op(
            "Einsum",
            (
                Op("Cast", (Value("x"),), when=_is_widening),
                Op("Cast", (Value("weight", stored=True),), when=_is_widening),
            ),
            when=_is_linear,
        ),
        ("x", "weight"),
    ),
    # A sparse MLP with its shared expert.
    Fusion(
        SPARSE_MOE,
        _beside(
            _experts(MOE_EXPERTS),
            Op(
                "Einsum",
                (
                    Op("Mul", (silu(SHARED_GATE), linear("shared_up")), any_order=True),
                    Value("shared_down", stored=True),
                ),
                when=_is_linear,
            ),
        ),
        tuple(tensor.name for tensor in SPARSE_MOE.inputs),
    ),
    Fusion(
        FP8_SPARSE_MOE,
        _beside(
            _experts(FP8_MOE_EXPERTS),
            Op(
                FP8_BLOCK_LINEAR.name,
                (
                    Op("Mul", (silu(SHARED_FP8_GATE), _fp8_linear("shared_up")), any_order=True),
                    Value("shared_down"),
                    Value("shared_down_scale"),
                ),
            ),
        ),
        tuple(tensor.name.removesuffix("_inv") for tensor in FP8_SPARSE_MOE.inputs),
    ),
    # What lies between the projections of an attention layer and the attention itself.
    Fusion(
        QK_NORM_ROPE,
        Op(
            GATED_ATTENTION.name,
            (
                _normed(Op("Slice", (HEADS, Constant("q_start"))), "q_weight", "q_norm"),
                _normed(Op("Reshape", (Value("k"),)), "k_weight"),
                Value("v"),
                Op("Reshape", (Op("Slice", (HEADS, Constant("gate_start"))),)),
            ),
            name="attention",
        ),
        ("q_gate", "k", "q_weight", "k_weight", "cos", "sin"),
        when=lambda found: _halves(found) == ([0], [_attribute("head_dim", found.nodes).i]),
        replaces=(0, 1, 3),
        through_casts=True,
    ),
)


def _halves(found: Match) -> tuple[list[int], list[int]]:
    return found.constants["q_start"], found.constants["gate_start"]


# The op of some linears of one x, by what the quantized ones are, how many, and how many plain ones there are.
PROJECTIONS = {
    (FP8_BLOCK_LINEAR.name, 3, 0): ATTENTION_PROJECTIONS,
    (FP8_BLOCK_LINEAR.name, 2, 2): DELTA_NET_PROJECTIONS,
    (INT4_GROUP_LINEAR.name, 3, 0): INT4_ATTENTION_PROJECTIONS,
    (INT4_GROUP_LINEAR.name, 2, 2): INT4_DELTA_NET_PROJECTIONS,
}
QUANTIZED = {kind for kind, _, _ in PROJECTIONS}


def fuse(nodes: Nodes, results: Sequence[str]) -> Nodes:
    """`nodes`, sorted so that they can run, with every known chain replaced; `results` are the graph's outputs."""
    return projections(replaced(nodes, results, FUSIONS))


def replaced(nodes: Nodes, results: Sequence[str], fusions: Sequence[Fusion]) -> Nodes:
    """`nodes` with every chain that one of `fusions` knows replaced, by the first that does."""
    producers = {output: node for node in nodes for output in node.output}
    fused: Nodes = []
    for node in nodes:
        fused += next((made for fusion in fusions if (made := fusion.apply(node, producers, results))), [node])
    return needed(fused, results)


def projections(nodes: Nodes) -> Nodes:
    """`nodes` with the linears that read one x as one node: three quantized ones, or two and two plain ones."""
    made = {output for node in nodes for output in node.output}
    by_x: dict[str, Nodes] = {}
    for node in nodes:
        if node.op_type in QUANTIZED or (_is_linear(node) and node.input[1] not in made):
            by_x.setdefault(node.input[0], []).append(node)
    joined: dict[str, onnx.NodeProto] = {}  # by the name of the first node
    replaced: set[str] = set()
    for members in by_x.values():
        one = _as_one(members)
        if one is not None:
            joined[members[0].name] = one
            replaced |= {node.name for node in members}
    return [joined.get(n.name, n) for n in nodes if n.name in joined or n.name not in replaced]


def _as_one(members: Nodes) -> onnx.NodeProto | None:
    """The node that stands for linears of one x; None where no op is all of them."""
    quantized = [node for node in members if node.op_type in QUANTIZED]
    plain = [node for node in members if node.op_type not in QUANTIZED]
    kinds = {node.op_type for node in quantized}
    if len(kinds) != 1 or len(_group_sizes(quantized)) > 1:
        return None
    op = PROJECTIONS.get((kinds.pop(), len(quantized), len(plain)))
    if op is None:
        return None
    ordered = [*quantized, *plain]
    inputs = [members[0].input[0], *(name for node in ordered for name in node.input[1:])]
    outputs = [node.output[0] for node in ordered]
    one = onnx.helper.make_node(op.name, inputs, outputs, members[0].name, domain=DOMAIN)
    one.attribute.extend(a for a in quantized[0].attribute if a.name in op.attributes)
    return one


def needed(nodes: Nodes, results: Sequence[str]) -> Nodes:
    """The nodes that `results` depend on, in their order; of two that make one value the later, its replacement."""
    wanted, made, kept = set(results), set[str](), []
    for node in reversed(nodes):
        fresh = set(node.output) - made
        if fresh & wanted:
            kept.append(node)
            made |= fresh
            wanted.update(node.input)
    return kept[::-1]
