"""TensorRT: layers inlined, chains fused, composite nodes without bodies for the plugins, weights as network inputs.

Nothing of the checkpoint but shapes and dtypes is in the lowered graph, so checkpoints of one shape lower to the
same bytes. FP8 weights are typed INT8: with FP8-typed tensors a plan can't serve GPUs without FP8 arithmetic. So are
packed ones: TensorRT has no use for UINT8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

from deltart.errors import BuildError
from deltart.export.check import check_inlined
from deltart.export.compressed_tensors import CONVERT_BLOCK
from deltart.export.lower.fuse import LINEAR_EQUATION, fuse
from deltart.export.trace import FUNCTION_DOMAIN
from deltart.plugins.registry import HOST_OPS, OPS
from deltart.plugins.spec import DOMAIN, SCALE
from deltart.plurals import counted

TARGET = "tensorrt"
CARRIERS = dict.fromkeys((onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.UINT8), onnx.TensorProto.INT8)


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an assembled `model` in TensorRT's terms; inputs are the model's own, then its weights by name.

    Raises:
        BuildError: the type of a weight has no kernel for GPUs.
        ExportError: see `check_inlined`.
    """
    functions = {f.name: f for f in model.functions}
    nodes = _contract_weights([node for call in model.graph.node for node in _inline(call, functions)])
    nodes = fuse(nodes, [output.name for output in model.graph.output])
    _check_storage(nodes, model.graph.initializer)
    weights = [
        onnx.helper.make_tensor_value_info(w.name, CARRIERS.get(w.data_type, w.data_type), list(w.dims))
        for w in model.graph.initializer
    ]
    graph = onnx.helper.make_graph(nodes, model.graph.name, [*model.graph.input, *weights], list(model.graph.output))
    opsets = [o for o in model.opset_import if o.domain != FUNCTION_DOMAIN]
    lowered = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version, producer_name="deltart")
    check_inlined(lowered)
    return lowered


def _check_storage(nodes: list[onnx.NodeProto], weights: Sequence[onnx.TensorProto]) -> None:
    """Raises BuildError for ops without a plugin, for float16 weights of plugins that don't take them, where TensorRT
    would abort, and for FP8 weights that no plugin reads."""
    hosts = [node for node in nodes if node.domain == DOMAIN and node.op_type in {spec.name for spec in HOST_OPS}]
    if hosts:
        raise BuildError(
            f"'{hosts[0].name}' is {hosts[0].op_type}, which has no kernel for GPUs",
            "experts in FP8 by blocks of 128 x 128, or in bfloat16",
            f"{CONVERT_BLOCK}; ONNX Runtime runs it as it is",
        )
    narrow = {weight.name for weight in weights if weight.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    bare = sorted({name for node in nodes if node.domain != DOMAIN for name in node.input} & narrow)
    if bare:
        more = f" and {counted(len(bare) - 1, 'more tensor')}" if len(bare) > 1 else ""
        raise BuildError(
            f"'{bare[0]}'{more} in FP8 with a scale per row, which no kernel for GPUs reads",
            "a scale per 128 x 128 values",
            f"{CONVERT_BLOCK}; ONNX Runtime runs it as it is",
        )
    half = {weight.name for weight in weights if weight.data_type == onnx.TensorProto.FLOAT16}
    taken = {spec.name: [tensor.dtype == SCALE for tensor in spec.inputs] for spec in OPS}
    read = sorted(
        {
            name
            for node in nodes
            if node.domain == DOMAIN
            for name, takes in zip(node.input, taken[node.op_type], strict=True)
            if name in half and not takes
        }
    )
    if read:
        more = f" and {counted(len(read) - 1, 'more tensor')}" if len(read) > 1 else ""
        raise BuildError(
            f"'{read[0]}'{more} stored in float16 (F16), read by TensorRT plugins",
            "bfloat16 or float32",
            "save it in bfloat16: model.to(torch.bfloat16).save_pretrained(folder); ONNX Runtime runs it as it is",
        )


def _contract_weights(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Write x W^T as one contraction: TensorRT would copy a weight that it has to transpose, lm_head's 2.5 GB too."""
    transposed = {n.output[0]: n for n in nodes if n.op_type == "Transpose" and list(n.attribute[0].ints) == [1, 0]}
    for node in nodes:
        if node.op_type == "MatMul" and node.input[1] in transposed:
            node.op_type = "Einsum"
            node.attribute.append(onnx.helper.make_attribute("equation", LINEAR_EQUATION))
            node.input[1] = transposed[node.input[1]].input[0]
    used = {i for node in nodes for i in node.input}
    return [n for n in nodes if n.output[0] not in transposed or n.output[0] in used]


def _inline(call: onnx.NodeProto, functions: Mapping[str, onnx.FunctionProto]) -> Iterator[onnx.NodeProto]:
    """The nodes of the layer function behind `call`; names inside become "<call>/<name>".

    Layer functions have no attributes and no nested graphs.
    """
    function = functions[call.op_type]
    names = (
        dict(zip(function.input, call.input, strict=True))
        | dict(zip(function.output, call.output, strict=True))
        | {"": ""}
    )
    for node in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{call.name}/{node.name.removeprefix('node_')}"
        copy.input[:] = [names[i] for i in node.input]
        names.update({o: f"{call.name}/{o}" for o in node.output if o not in names})
        copy.output[:] = [names[o] for o in node.output]
        yield copy
