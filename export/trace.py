"""Traces blocks into ONNX functions whose inputs are the block's arguments, its states and its weights."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnxscript import ir
from torch import nn

from deltart.export import ops
from deltart.export.garbage import no_garbage_collection
from deltart.export.graph import Block, Value
from deltart.export.weights import torch_dtype

OPSET = 24
FUNCTION_DOMAIN = "deltart.layers"
# Sizes that stand for the dynamic axes while tracing: distinct and above 1, so that none is specialised.
EXAMPLE_SIZES = {"B": 2, "T": 5, "L": 3, "capacity": 7, "M": 11, "F": 6, "S": 16}


@dataclass(frozen=True)
class BlockKind:
    """A block to trace, its module (parameters on the meta device), the values that it reads and writes, and the name
    of the function it becomes."""

    name: str
    block: Block
    module: nn.Module
    values: Mapping[str, Value]


@dataclass(frozen=True)
class TracedBlock:
    """A function, and the module's parameter names in the order of its trailing inputs."""

    function: onnx.FunctionProto
    parameters: tuple[str, ...]


def trace_blocks(kinds: Sequence[BlockKind], dtype: torch.dtype) -> list[TracedBlock]:
    """Trace every kind with its named axes dynamic; `dtype` is the activation dtype.

    All kinds go through the exporter side by side, since most of a trace is the exporter's own start-up.
    """
    borders = [_border(kind.block, kind.values) for kind in kinds]
    arguments = [a for taken, _ in borders for a in taken]
    with warnings.catch_warnings(), _QuietExporter(), no_garbage_collection():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            _SideBySide(kinds, [len(taken) for taken, _ in borders]).eval(),
            tuple(
                _example(a, dtype, _device(kind.module))
                for kind, (taken, _) in zip(kinds, borders, strict=True)
                for a in taken
            ),
            dynamic_shapes={"arguments": tuple(_dynamic_axes(a) for a in arguments)},
            strict=False,
        )
        _keep_as_it_is(exported)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            custom_translation_table=ops.TRANSLATIONS,
        )
        assert program is not None
        return _split(program.model, kinds, borders)


def _keep_as_it_is(program: torch.export.ExportedProgram) -> None:
    """Spare the exporter its second trace, which takes ops apart: here it has all of them but conversions."""
    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
        elif node.target is aten.to.dtype:
            x, dtype = node.args[:2]
            if x.meta["val"].dtype == dtype:
                node.replace_all_uses_with(x)
                program.graph_signature.replace_all_uses(node.name, x.name)
                program.graph.erase_node(node)
            else:
                node.target, node.args, node.kwargs = aten._to_copy.default, (x,), {"dtype": dtype}
    program.run_decompositions = lambda decomp_table=None, **_: program


class _SideBySide(nn.Module):
    """Calls independent modules on consecutive runs of its arguments."""

    def __init__(self, kinds: Sequence[BlockKind], counts: Sequence[int]) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(kind.module for kind in kinds)
        self.counts = tuple(counts)

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: list[torch.Tensor] = []
        remaining = iter(arguments)
        for module, count in zip(self.kinds, self.counts, strict=True):
            result = module(*itertools.islice(remaining, count))
            results += result if isinstance(result, tuple) else (result,)
        return tuple(results)


def _border(block: Block, values: Mapping[str, Value]) -> tuple[list[Value], list[str]]:
    """(arguments, result names) of a block; a result that replaces an argument is named `x_out`."""
    arguments = [values[i] for i in block.inputs] + [Value(_short(s.name), s.dtype, s.axes) for s in block.states]
    results = [f"{o}_out" if o in block.inputs else o for o in block.outputs]
    return arguments, results + [f"{_short(s.name)}_out" for s in block.states]


def _split(
    model: ir.Model, kinds: Sequence[BlockKind], borders: Sequence[tuple[list[Value], list[str]]]
) -> list[TracedBlock]:
    """One function per kind out of the graph that holds them side by side."""
    weights = _weights_to_inputs(model.graph)
    keep_leading_axes(model.graph)
    onnxscript.optimizer.optimize_ir(model, inline=False)
    arguments, results = iter(list(model.graph.inputs)), iter(list(model.graph.outputs))
    traced = []
    for index, (kind, (taken, given)) in enumerate(zip(kinds, borders, strict=True)):
        inputs, outputs = list(itertools.islice(arguments, len(taken))), list(itertools.islice(results, len(given)))
        mine = [w for w in weights if str(w.name).startswith(f"kinds.{index}.")]
        graph = _cut(model.graph, inputs + mine, outputs)
        parameters = tuple(str(w.name).removeprefix(f"kinds.{index}.") for w in mine)
        names = [a.name for a in taken] + list(parameters)
        for value, name in zip([*graph.inputs, *graph.outputs], names + given, strict=True):
            value.name = name
        traced.append(TracedBlock(_as_function(graph, kind.name, model.opset_imports), parameters))
    return traced


def _cut(graph: ir.Graph, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Graph:
    """A graph of its own from the nodes between `inputs` and `outputs`."""
    border, needed, constants = set(inputs), set[ir.Node](), dict[ir.Value, None]()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        producer = value.producer()
        if value in border or producer in needed:
            continue
        if producer is None:
            assert value.is_initializer(), f"{value.name} belongs to another block"
            constants[value] = None
        else:
            needed.add(producer)
            pending += [v for v in producer.inputs if v is not None]
    return _copy(inputs, outputs, [node for node in graph if node in needed], list(constants))


def _copy(inputs: list[ir.Value], outputs: list[ir.Value], nodes: list[ir.Node], constants: list[ir.Value]) -> ir.Graph:
    copies = {v: ir.Value(name=v.name, shape=v.shape, type=v.type) for v in inputs}
    copied = []
    for constant in constants:
        node = ir.node("Constant", [], {"value": constant.const_value})
        node.outputs[0].name = constant.name
        copies[constant] = node.outputs[0]
        copied.append(node)
    for node in nodes:
        taken = [copies[v] if v is not None else None for v in node.inputs]
        clone = ir.Node(
            node.domain,
            node.op_type,
            taken,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for old, new in zip(node.outputs, clone.outputs, strict=True):
            new.name, new.shape, new.type = old.name, old.shape, old.type
            copies[old] = new
        copied.append(clone)
    return ir.Graph([copies[v] for v in inputs], [copies[v] for v in outputs], nodes=copied)


def _as_function(graph: ir.Graph, name: str, opsets: Mapping[str, int]) -> onnx.FunctionProto:
    ir.passes.common.NameFixPass()(ir.Model(graph, ir_version=11))
    proto = ir.serde.serialize_function(ir.Function(FUNCTION_DOMAIN, name, graph=graph, attributes=[]))
    del proto.opset_import[:]
    domains = sorted({node.domain for node in proto.node} | {""})
    proto.opset_import.extend(onnx.helper.make_opsetid(d, opsets[d]) for d in domains)
    return proto


def _weights_to_inputs(graph: ir.Graph) -> list[ir.Value]:
    """Turn parameters into graph inputs (the optimizer would read the values of initializers) and return them."""
    values = graph.initializers.values()
    parameters = [v for v in values if isinstance(getattr(v.const_value, "raw", None), nn.Parameter)]
    for value in parameters:
        graph.initializers.pop(str(value.name))
        value.const_value = None
        graph.inputs.append(value)
    return parameters


def keep_leading_axes(graph: ir.Graph) -> None:
    """Give every Reshape that leaves dynamic axes where they are a constant shape (0 = as the input's)."""
    for node in [n for n in graph if n.op_type == "Reshape"]:
        data, result = node.inputs[0], node.outputs[0]
        if data is None or data.shape is None or result.shape is None:
            continue
        pairs = itertools.zip_longest(result.shape, data.shape.dims[: len(result.shape)])
        sizes = [new if isinstance(new, int) else 0 if new == old else None for new, old in pairs]
        if None not in sizes:
            constant = ir.tensor(np.array(sizes, np.int64), name=f"{result.name}_shape")
            shape = ir.node("Constant", [], {"value": constant})
            graph.insert_before(node, shape)
            node.replace_input_with(1, shape.outputs[0])
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _device(module: nn.Module) -> torch.device:
    """Meta where there are weights; the rotary table has real constants instead."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _example(value: Value, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(value.shape(EXAMPLE_SIZES), dtype=torch_dtype(value.element_type(dtype)), device=device)


def _dynamic_axes(value: Value) -> dict[int, object]:
    return {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(value.axes) if isinstance(axis, str)}


def _short(state: str) -> str:
    return state.rsplit(".", 1)[-1]


class _QuietExporter:
    """Mutes torch's notes about optional packages for the length of a trace."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "torch.fx")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
