"""Traces each kind of block once and stamps it by layer: one node per block, weights as named initializers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import onnx
from torch import nn

from deltart.export.bound import BoundModel
from deltart.export.graph import Block, ModelGraph, Value
from deltart.export.lower.functions import Lowering, composite_functions
from deltart.export.states import state_output
from deltart.export.trace import FUNCTION_DOMAIN, OPSET, BlockKind, TracedBlock, trace_blocks
from deltart.export.weights import external_initializer
from deltart.plugins.registry import MODEL_OPS
from deltart.plugins.spec import DOMAIN, FP8, VERSION

IR_VERSION = 11  # the newest that ONNX Runtime 1.23 and TensorRT 10 both read
BASE_OPSETS = {"": OPSET, DOMAIN: VERSION, FUNCTION_DOMAIN: 1}
FP8_OPERAND = {spec.name: i for spec in MODEL_OPS for i, t in enumerate(spec.inputs) if t.dtype == FP8}


class Tracer:
    """Traced functions of every block of some graphs.

    Two blocks of one class whose parameters agree in shape and dtype, and whose constants are equal, are one kind and
    share a function.
    """

    def __init__(self, model: BoundModel) -> None:
        self.checkpoint, self.dtype = model.checkpoint, model.dtype
        self._kind_of: dict[tuple[str, str], Hashable] = {}
        kinds: dict[Hashable, BlockKind] = {}
        for bound in model.graphs:
            for block, module in ((b.block, b.module) for b in bound.blocks):
                key = (type(module).__name__, *_signature(module))
                self._kind_of[bound.graph.name, block.name] = key
                if key not in kinds:
                    name = _function_name(type(module).__name__, kinds)
                    kinds[key] = BlockKind(name, block, module, bound.graph.values)
        traced = trace_blocks(list(kinds.values()), model.dtype)
        self._traced = dict(zip(kinds, traced, strict=True))

    def traced(self, graph: ModelGraph, block: Block) -> TracedBlock:
        """The function of `block`."""
        return self._traced[self._kind_of[graph.name, block.name]]


def _function_name(kind: str, known: Mapping[Hashable, BlockKind]) -> str:
    variants = sum(1 for other in known.values() if other.name.partition("_")[0] == kind)
    return f"{kind}_{variants + 1}" if variants else kind


def assemble(graph: ModelGraph, tracer: Tracer) -> tuple[onnx.ModelProto, list[str]]:
    """The graph with composite nodes still open (no bodies yet), and the checkpoint tensors it reads in order."""
    functions: dict[str, onnx.FunctionProto] = {}
    nodes, weights = [], dict[str, None]()
    current = {name: name for name in graph.inputs}  # value name -> tensor name in the graph
    for block in graph.blocks:
        traced = tracer.traced(graph, block)
        functions[traced.function.name] = traced.function
        tensors = [block.tensor_name(p) for p in traced.parameters]
        weights.update(dict.fromkeys(tensors))
        outputs = [_result_name(block, output, graph) for output in block.outputs]
        nodes.append(
            onnx.helper.make_node(
                traced.function.name,
                [current[i] for i in block.inputs] + [s.name for s in block.states] + tensors,
                outputs + [state_output(s) for s in block.states],
                name=block.name,
                domain=FUNCTION_DOMAIN,
            )
        )
        current.update(zip(block.outputs, outputs, strict=True))
    return _model(graph, tracer, nodes, list(functions.values()), list(weights)), list(weights)


def lower(model: onnx.ModelProto, bodies: Lowering) -> onnx.ModelProto:
    """A copy of `model` whose composite nodes have the bodies of one target."""
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    for function in lowered.functions:
        _expose_fp8_inputs(function)
    composites = composite_functions((n for f in model.functions for n in f.node), bodies)
    lowered.functions.extend(composites)
    known = {o.domain for o in lowered.opset_import}
    needed = {o.domain for f in composites for o in f.opset_import} - known
    lowered.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(needed))
    return lowered


def _expose_fp8_inputs(function: onnx.FunctionProto) -> None:
    """Pass FP8 weights through an Identity on their way into a nested function.

    ONNX Runtime takes the types of a function's input from the standard ops that read it; for one that only goes
    into another function it assumes a list without FP8. It removes the Identity when it loads the graph.
    """
    copies = []
    for node in function.node:
        if node.domain == DOMAIN and node.op_type in FP8_OPERAND:
            operand = FP8_OPERAND[node.op_type]
            copies.append(onnx.helper.make_node("Identity", [node.input[operand]], [f"{node.input[operand]}.fp8"]))
            node.input[operand] = f"{node.input[operand]}.fp8"
    for node in reversed(copies):
        function.node.insert(0, node)


def _model(
    graph: ModelGraph,
    tracer: Tracer,
    nodes: list[onnx.NodeProto],
    functions: list[onnx.FunctionProto],
    weights: list[str],
) -> onnx.ModelProto:
    def info(value: Value, name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, value.element_type(tracer.dtype).onnx, list(value.axes))

    states = graph.states
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            graph.name,
            [info(graph.values[i], i) for i in graph.inputs] + [info(s, s.name) for s in states],
            [info(graph.values[o], o) for o in graph.outputs] + [info(s, state_output(s)) for s in states],
            [external_initializer(tracer.checkpoint.at(w)) for w in weights],
        ),
        functions=functions,
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in BASE_OPSETS.items()],
        ir_version=IR_VERSION,
        producer_name="deltart",
    )


def _result_name(block: Block, output: str, graph: ModelGraph) -> str:
    return output if output in graph.outputs else f"{block.name}.{output}"


def _signature(module: nn.Module) -> list[tuple[Hashable, ...]]:
    parameters: list[tuple[Hashable, ...]]
    parameters = [(name, str(p.dtype), tuple(p.shape)) for name, p in module.named_parameters()]
    return parameters + [(name, b.numpy().tobytes()) for name, b in module.named_buffers()]
