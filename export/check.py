"""What must hold of a graph before it counts as exported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from deltart.errors import ExportError
from deltart.export.states import NEXT
from deltart.plugins.registry import FUSED_OPS, MODEL_OPS
from deltart.plugins.spec import DOMAIN

OP = {spec.name: spec for spec in (*MODEL_OPS, *FUSED_OPS)}


def check_graphs(paths: Iterable[Path]) -> None:
    """Run the ONNX checker, shape inference included, with the weights as inputs.

    The checker refuses external data in hard-linked files, and the weights' places were checked when read.
    """
    for path in paths:
        model = onnx.load(path, load_external_data=False)
        graph = model.graph
        graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in graph.initializer)
        del graph.initializer[:]
        onnx.checker.check_model(model, full_check=True)


def check_inlined(model: onnx.ModelProto) -> None:
    """What a lowering into plain nodes has to leave: nodes that somebody serves, and a writer for every state.

    Raises:
        ExportError: a node is neither standard nor of a registered op, or a state does not leave from an op that may
            write it over its input.
    """
    opset = next(o.version for o in model.opset_import if o.domain == "")
    for node in model.graph.node:
        standard = node.domain == "" and onnx.defs.has(node.op_type, opset, "")
        if not standard and not (node.domain == DOMAIN and node.op_type in OP):
            where = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise ExportError(f"node '{node.name}' is {where}", "a standard op, or one of plugins/registry.py")
    inputs = {value.name for value in model.graph.input}
    for output in (value.name for value in model.graph.output):
        state = output.removesuffix(NEXT)
        if state != output and state in inputs and not any(_writes(node, state, output) for node in model.graph.node):
            raise ExportError(f"no op writes '{output}' over '{state}'", "one whose contract says that it may")


def _writes(node: onnx.NodeProto, state: str, output: str) -> bool:
    """Whether the node reads `state` where an output of its contract, which `output` is, may replace it."""
    if node.domain != DOMAIN or output not in node.output:
        return False
    spec = OP[node.op_type]
    alias = spec.outputs[list(node.output).index(output)].alias
    return alias is not None and node.input[[t.name for t in spec.inputs].index(alias)] == state
