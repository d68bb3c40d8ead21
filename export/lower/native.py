"""Native plans: the TensorRT graph with what it leaves to TensorRT's compiler folded into ops that have kernels.

What stays are composite nodes, and constants that they read: a native plan is a list of launches, and nothing else
could run there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from deltart.errors import ExportError
from deltart.export.lower.fuse import Fusion, Nodes, linear, needed, replaced, silu
from deltart.export.lower.patterns import Constant, Match, Op, Producers, Value, match
from deltart.plugins.linear.op import LINEAR, LINEAR_GATE_UP, SILU_MUL
from deltart.plugins.registry import NATIVE_OPS, OPS
from deltart.plugins.residual_rms_norm.op import RESIDUAL_RMS_NORM, RMS_NORM
from deltart.plugins.rotary_table.op import ROTARY_TABLE
from deltart.plugins.rows.op import CONCAT_ROWS, EMBEDDING, TAKE_ROWS
from deltart.plugins.spec import DOMAIN

TARGET = "native"
SERVED = {spec.name for spec in (*OPS, *NATIVE_OPS)}


def lower(lowered: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that was lowered for TensorRT, of composite nodes and their constants alone.

    Raises:
        ExportError: a node is left that no kernel serves; it is named.
    """
    results = [output.name for output in lowered.graph.output]
    nodes = needed(_with_rotary_table(list(lowered.graph.node)), results)
    nodes = replaced(nodes, results, FUSIONS)
    unserved = [node for node in nodes if node.domain != DOMAIN and node.op_type != "Constant"]
    unserved += [node for node in nodes if node.domain == DOMAIN and node.op_type not in SERVED]
    if unserved:
        first, more = unserved[0], f", and {len(unserved) - 1} more" if len(unserved) > 1 else ""
        raise ExportError(
            f"node '{first.name}' is {first.op_type}{more}, which no kernel serves in a native plan",
            "an op of plugins/registry.py, or a chain that export/lower/native.py folds into one",
            "build it with `--flavour rtx` or `--flavour tensorrt`",
        )
    model = onnx.ModelProto()
    model.CopyFrom(lowered)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _norm(of: Value | Op) -> Op:
    """x / rms(x) * (1 + weight) in f32, rounded to the activations' type."""
    scale = Op("Add", (Value("weight", uncast=True), Constant("one")))
    return Op("Cast", (Op("RMSNormalization", (Op("Cast", (of,)), scale), name="norm"),), when=_narrows)


def _narrows(node: onnx.NodeProto) -> bool:
    return any(a.name == "to" and a.i == onnx.TensorProto.BFLOAT16 for a in node.attribute)


def _adds_one(found: Match) -> bool:
    axes = [a.i for a in found.nodes["norm"].attribute if a.name == "axis"]
    return np.ravel(found.constants["one"]).tolist() == [1] and axes in ([], [-1])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


EXPANDED = Op("Expand", (Op("Unsqueeze", (Value("index"),)),))

FUSIONS = (
    Fusion(
        RESIDUAL_RMS_NORM,
        _norm(Op("Add", (Value("h"), Value("x")), name="sum")),
        ("x", "h", "weight"),
        when=_adds_one,
        also=("sum",),
    ),
    Fusion(RMS_NORM, _norm(Value("h")), ("h", "weight"), when=_adds_one),
    Fusion(
        LINEAR_GATE_UP,
        Op("Mul", (silu(linear("gate", name="gate")), linear("up")), any_order=True),
        ("x", "gate", "up"),
    ),
    Fusion(SILU_MUL, Op("Mul", (silu(Value("gate")), Value("up")), any_order=True), ("gate", "up")),
    Fusion(LINEAR, linear("weight"), ("x", "weight")),
    Fusion(
        EMBEDDING,
        Op("Gather", (Value("table", stored=True), Value("ids")), when=lambda node: _attribute(node, "axis", 0) == 0),
        ("ids", "table"),
    ),
    Fusion(
        TAKE_ROWS,
        Op("GatherElements", (Value("x"), EXPANDED), when=lambda node: _attribute(node, "axis", 0) == 1),
        ("x", "index"),
    ),
    Fusion(
        CONCAT_ROWS,
        Op(
            "Concat",
            (Value("first"), Value("second")),
            when=lambda node: len(node.input) == 2 and _attribute(node, "axis", 0) == -1,
        ),
        ("first", "second"),
    ),
)

ANGLES = Op(
    "Mul",
    (
        Op("Cast", (Op("Transpose", (Op("Gather", (Value("position_ids"), Value("axes"))),)),)),
        Value("inv_freq"),
    ),
)


def _with_rotary_table(nodes: Nodes) -> Nodes:
    """`nodes` with the table of cos and sin, which has two ends, as one node; as they are where there is none."""
    producers = {output: node for node in nodes for output in node.output}
    ends = {node.op_type: _end(node, nodes, producers) for node in nodes if node.op_type in ("Cos", "Sin")}
    if set(ends) != {"Cos", "Sin"}:
        return nodes
    (cos, cos_of, scale), (sin, sin_of, other) = ends["Cos"], ends["Sin"]
    found = match(ANGLES, cos_of, producers)
    if found is None or cos_of != sin_of or scale != other:
        return nodes
    inputs = [found.values[tensor.name] for tensor in ROTARY_TABLE.inputs]
    outputs = [cos.output[0], sin.output[0]]
    made = onnx.helper.make_node(ROTARY_TABLE.name, inputs, outputs, cos.name, domain=DOMAIN, scale=scale)
    return [made if node is cos else node for node in nodes if node is not sin]


def _end(
    node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], producers: Producers
) -> tuple[onnx.NodeProto, str, float]:
    """The node that rounds a Cos or Sin, what it is of, and the constant that it is multiplied with on the way."""
    angle, scale, value = node.input[0], 1.0, node.output[0]
    while True:
        (node,) = [other for other in nodes if value in other.input]
        value = node.output[0]
        if node.op_type != "Mul":
            return node, angle, scale
        factors = [producers[name] for name in node.input if name in producers]
        (constant,) = [other for other in factors if other.op_type == "Constant"]
        scale *= float(onnx.numpy_helper.to_array(constant.attribute[0].t))
