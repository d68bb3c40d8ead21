"""Traces one block into an ONNX function whose inputs are its arguments, its states and its weights."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnxscript import ir
from torch import nn

from deltart.export import ops
from deltart.export.graph import I64, Block, Value
from deltart.plugins.spec import ACT, F32, I32

OPSET = 24
FUNCTION_DOMAIN = "deltart.layers"
# Sizes that stand for the dynamic axes while tracing: distinct and above 1, so that none is specialised.
EXAMPLE_SIZES = {"B": 2, "T": 5, "L": 3, "capacity": 7}


@dataclass(frozen=True)
class TracedBlock:
    """A function, and the module's parameter names in the order of its trailing inputs."""

    function: onnx.FunctionProto
    parameters: tuple[str, ...]


def trace_block(
    block: Block, module: nn.Module, values: Mapping[str, Value], dtype: torch.dtype, name: str
) -> TracedBlock:
    """Trace `module` (parameters on the meta device) with dynamic B, T, L and capacity.

    Args:
        dtype: the activation dtype.
        name: the name of the resulting function in FUNCTION_DOMAIN.
    """
    arguments = [values[i] for i in block.inputs] + [Value(_short(s.name), s.dtype, s.axes) for s in block.states]
    results = list(block.outputs) + [f"{_short(s.name)}_out" for s in block.states]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with warnings.catch_warnings(), _QuietExporter():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(_example(a, dtype, device) for a in arguments),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            custom_translation_table=ops.TRANSLATIONS,
            dynamic_shapes=tuple(_dynamic_axes(a) for a in arguments),
            input_names=[a.name for a in arguments],
            output_names=[r if r not in block.inputs else f"{r}_out" for r in results],
        )
    assert program is not None
    return _as_function(program.model, name)


def _as_function(model: ir.Model, name: str) -> TracedBlock:
    parameters = _weights_to_inputs(model.graph)
    onnxscript.optimizer.optimize_ir(model, inline=False)
    keep_leading_axes(model.graph)
    onnxscript.optimizer.optimize_ir(model, inline=False)
    for value in list(model.graph.initializers.values()):
        model.graph.initializers.pop(str(value.name))
        constant = ir.node("Constant", [], {"value": value.const_value}, outputs=[value])
        model.graph.insert_before(model.graph[0], constant)
    proto = ir.serde.serialize_function(ir.Function(FUNCTION_DOMAIN, name, graph=model.graph, attributes=[]))
    del proto.opset_import[:]
    domains = sorted({node.domain for node in proto.node} | {""})
    proto.opset_import.extend(onnx.helper.make_opsetid(d, model.opset_imports[d]) for d in domains)
    return TracedBlock(proto, parameters)


def _weights_to_inputs(graph: ir.Graph) -> tuple[str, ...]:
    values = graph.initializers.values()
    parameters = [v for v in values if isinstance(getattr(v.const_value, "raw", None), nn.Parameter)]
    for value in parameters:
        graph.initializers.pop(str(value.name))
        value.const_value = None
        graph.inputs.append(value)
    return tuple(str(value.name) for value in parameters)


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


def _example(value: Value, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    kinds = {ACT: dtype, F32: torch.float32, I32: torch.int32, I64: torch.int64}
    shape = [axis if isinstance(axis, int) else EXAMPLE_SIZES[axis] for axis in value.axes]
    return torch.zeros(shape, dtype=kinds[value.dtype], device=device)


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
