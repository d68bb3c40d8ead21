"""What the graphs are lowered to: by name, how, in which types, and where a state may be updated in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch

from deltart.artifact import load_manifest, read_graph
from deltart.errors import ArtifactError
from deltart.export.assemble import Tracer, assemble, lower
from deltart.export.bound import BoundGraph, BoundModel, bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.lower import functions, native, ort, tensorrt
from deltart.export.spec import exported_spec
from deltart.export.states import writers
from deltart.export.weights import WEIGHTS_FOLDER
from deltart.files import write_atomically
from deltart.manifest import SEEING, Manifest
from deltart.plugins.registry import MODEL_OPS


@dataclass(frozen=True)
class Target:
    """A lowering.

    Args:
        dtype: of the activations while tracing.
        lower: makes this target's model of an assembled one.
        in_place: ops that write a state over its input here, where their contract lets them.
    """

    name: str
    dtype: torch.dtype
    lower: Callable[[onnx.ModelProto], onnx.ModelProto]
    in_place: frozenset[str] = frozenset()

    def file(self, graph: str) -> str:
        """Name of a graph's file."""
        return f"{graph}.onnx" if self.name == PORTABLE else f"{graph}.{self.name}.onnx"


PORTABLE = "portable"
TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(PORTABLE, torch.float32, lambda model: lower(model, functions.PORTABLE)),
        Target(
            "ort",
            torch.float32,
            lambda model: ort.use_multi_head_attention(lower(model, functions.ORT)),
            functions.ORT_IN_PLACE,
        ),
        Target(tensorrt.TARGET, torch.bfloat16, tensorrt.lower, frozenset(spec.name for spec in MODEL_OPS)),
    )
}
# Targets that are made of another's graphs, without a trace: how, and of which.
DERIVED = {native.TARGET: (native.lower, TARGETS[tensorrt.TARGET])}
EXPORTED = (TARGETS["portable"], TARGETS["ort"])  # written by every export, of one trace
EXPORTED_INT8 = (
    TARGETS["portable"],
    replace(TARGETS["ort"], lower=lambda model: ort.use_multi_head_attention(lower(model, functions.ORT_INT8))),
)  # the same, where the activations of int4 linears are rounded to int8 on `ort`


@dataclass(frozen=True)
class Written:
    """What became of one graph: its files by target, the tensors it reads, and by state where it is in place."""

    bound: BoundGraph
    files: Mapping[str, str]
    weights: Sequence[str]
    in_place: Mapping[str, list[str]]


def write_graphs(
    model: BoundModel, targets: Sequence[Target], folder: Path, log: Callable[[str], None] = lambda step: None
) -> list[Written]:
    """Write every graph into `folder` for `targets`, whose type is the model's. Traces once."""
    log(f"tracing each kind of block in {str(model.dtype).removeprefix('torch.')}")
    tracer = Tracer(model)
    log("assembling " + ", ".join(bound.graph.name for bound in model.graphs))
    written = []
    for bound in model.graphs:
        graph = bound.graph
        assembled, weights = assemble(graph, tracer)
        for target in targets:
            content = target.lower(assembled).SerializeToString(deterministic=True)
            write_atomically(folder / target.file(graph.name), content)
        files = {target.name: target.file(graph.name) for target in targets}
        written.append(Written(bound, files, weights, _in_place(bound, tracer)))
    return written


def _in_place(bound: BoundGraph, tracer: Tracer) -> dict[str, list[str]]:
    """The targets, by state, on which its input and output may be one buffer."""
    found = {}
    for block in bound.graph.blocks:
        for state, op in writers(block, tracer.traced(bound.graph, block).function).items():
            found[state] = [t.name for t in TARGETS.values() if op is not None and op.name in t.in_place]
    return found


def lower_artifact(artifact: Path, name: str, log: Callable[[str], None] = lambda step: None) -> None:
    """Add the graphs of target `name` to an artifact that was exported without them; does nothing where they are.

    Raises:
        ArtifactError: the checkpoint is no longer the one that was exported.
        ExportError: the graphs hold what `name` can't serve.
    """
    manifest = load_manifest(artifact)
    if all((artifact / g.files.get(name, "missing")).exists() for g in manifest.graphs_on(name).values()):
        return
    if name in DERIVED:
        _derive(artifact, name, log)
        return
    target = TARGETS[name]
    tensors = _exported_tensors(artifact, manifest)
    spec, mtp = exported_spec(manifest.spec), "mtp" in manifest.graphs
    model, files = bind(spec, tensors, target.dtype, mtp), defaultdict[str, dict[str, str]](dict)
    parts = [(model, target)]
    if manifest.vision is not None:
        *text, tower = bind(spec, tensors, target.dtype, mtp, vision=True).graphs
        parts = [
            (replace(model, graphs=(*model.graphs, tower)), target),
            (replace(model, graphs=tuple(text)), replace(target, name=SEEING)),
        ]
    for part, lowering in parts:
        for written in write_graphs(part, [lowering], artifact, log):
            files[written.bound.graph.name] |= written.files
    _add_files(artifact, manifest, files)


def _derive(artifact: Path, name: str, log: Callable[[str], None]) -> None:
    make, base = DERIVED[name]
    lower_artifact(artifact, base.name, log)
    manifest, files = load_manifest(artifact), {}
    for graph in manifest.graphs_on(name):
        made = make(onnx.load_model_from_string(read_graph(artifact, manifest, graph, base.name)))
        files[graph] = {name: f"{graph}.{name}.onnx"}
        write_atomically(artifact / files[graph][name], made.SerializeToString(deterministic=True))
    _add_files(artifact, manifest, files)


def _add_files(artifact: Path, manifest: Manifest, files: Mapping[str, Mapping[str, str]]) -> None:
    graphs = {n: replace(manifest.graphs[n], files={**manifest.graphs[n].files, **added}) for n, added in files.items()}
    replace(manifest, graphs={**manifest.graphs, **graphs}).save(artifact)


def _exported_tensors(artifact: Path, manifest: Manifest) -> Checkpoint:
    """The tensors of the export: as the artifact links them, or in the checkpoint's folder where it can't.

    Raises:
        ArtifactError: they are in neither, or no longer those that were exported.
    """
    names = [file.name for file in manifest.files]
    linked = artifact / WEIGHTS_FOLDER
    folder = linked if all((linked / name).exists() for name in names) else Path(manifest.checkpoint)
    if not all((folder / name).exists() for name in names):
        raise ArtifactError(
            f"the weights are neither in {linked} nor in {folder}", "the files that were exported", "export it again"
        )
    tensors = Checkpoint.of_files(folder, names)
    if {f.name: f.header_sha256 for f in tensors.files} != {f.name: f.header_sha256 for f in manifest.files}:
        raise ArtifactError(f"{folder} is no longer the checkpoint that was exported", hint="export it again")
    return tensors
