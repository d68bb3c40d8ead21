"""TensorRT: layers inlined, chains fused, composite nodes without bodies for the plugins, weights as network inputs.

Nothing of the checkpoint but shapes and dtypes is in the lowered graph, so checkpoints of one shape lower to the
same bytes. FP8 weights are typed INT8: with FP8-typed tensors a plan can't serve GPUs without FP8 arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from deltart.errors import ArtifactError, BuildError
from deltart.export.assemble import Tracer, assemble
from deltart.export.checkpoint import Checkpoint
from deltart.export.lower.fuse import LINEAR_EQUATION, fuse
from deltart.export.models.registry import graphs_of
from deltart.export.spec import ModelSpec, exported_spec
from deltart.export.trace import FUNCTION_DOMAIN
from deltart.export.weights import WEIGHTS_FOLDER
from deltart.files import write_atomically
from deltart.manifest import Manifest, load_manifest
from deltart.plugins.spec import DOMAIN
from deltart.plurals import counted

TARGET = "tensorrt"
DTYPE = torch.bfloat16
CARRIERS = {onnx.TensorProto.FLOAT8E4M3FN: onnx.TensorProto.INT8}


def lower_graphs(spec: ModelSpec, checkpoint: Checkpoint, mtp: bool) -> Iterator[tuple[str, onnx.ModelProto]]:
    """(graph name, lowered model) of every graph, traced with bfloat16 activations."""
    graphs = graphs_of(spec, DTYPE, mtp)
    tracer = Tracer(spec, checkpoint, DTYPE, graphs)
    for graph in graphs:
        model, _ = assemble(graph, tracer)
        yield graph.name, lower(model)


def write_graphs(spec: ModelSpec, checkpoint: Checkpoint, folder: Path, mtp: bool) -> dict[str, str]:
    """Write every lowered graph into `folder`; file names by graph name."""
    files = {}
    for name, model in lower_graphs(spec, checkpoint, mtp):
        files[name] = f"{name}.{TARGET}.onnx"
        write_atomically(folder / files[name], model.SerializeToString(deterministic=True))
    return files


def lower_artifact(artifact: Path, report: Callable[[str], None] = lambda step: None) -> None:
    """Add the TensorRT graphs to an artifact that was exported without them; does nothing where they are.

    Raises:
        ArtifactError: the checkpoint is no longer the one that was exported.
    """
    manifest = load_manifest(artifact)
    if all((artifact / g.files.get(TARGET, "missing")).exists() for g in manifest.graphs.values()):
        return
    tensors = _exported_tensors(artifact, manifest)
    spec = exported_spec(manifest.spec)
    report("tracing each kind of block in bfloat16")
    files = write_graphs(spec, tensors, artifact, "mtp" in manifest.graphs)
    graphs = {n: replace(g, files={**g.files, TARGET: files[n]}) for n, g in manifest.graphs.items()}
    replace(manifest, graphs=graphs).save(artifact)


def _exported_tensors(artifact: Path, manifest: Manifest) -> Checkpoint:
    """The tensors of the export: as the artifact links them, or in the checkpoint's folder where it can't."""
    names = [file.name for file in manifest.files]
    linked = artifact / WEIGHTS_FOLDER
    whole = all((linked / name).exists() for name in names)
    folder = linked if whole else Path(manifest.checkpoint)
    if not all((folder / name).exists() for name in names):
        raise ArtifactError(
            f"the weights are neither in {linked} nor in {folder}", "the files that were exported", "export again"
        )
    tensors = Checkpoint.of_files(folder, names)
    if {f.name: f.header_sha256 for f in tensors.files} != {f.name: f.header_sha256 for f in manifest.files}:
        raise ArtifactError(f"{folder} is no longer the checkpoint that was exported", hint="export it again")
    return tensors


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an assembled `model` in TensorRT's terms; inputs are the model's own, then its weights by name."""
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
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version, producer_name="deltart")


def _check_storage(nodes: list[onnx.NodeProto], weights: Sequence[onnx.TensorProto]) -> None:
    """Raises BuildError for float16 weights of plugins: TensorRT would abort where no plugin takes their type."""
    half = {weight.name for weight in weights if weight.data_type == onnx.TensorProto.FLOAT16}
    read = sorted({name for node in nodes if node.domain == DOMAIN for name in node.input} & half)
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
