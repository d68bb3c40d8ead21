"""Checkpoint folder in, artifact folder out."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

import deltart
from deltart import manifest
from deltart.errors import ExportError
from deltart.export.assemble import Tracer, assemble, lower, state_output
from deltart.export.checkpoint import Checkpoint
from deltart.export.graph import ModelGraph, State
from deltart.export.lower import ort, portable, tensorrt
from deltart.export.models.registry import deferred_of, graphs_of
from deltart.export.regions import Region
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.structure import settle
from deltart.export.text import bring_text, check_text
from deltart.export.weights import WEIGHTS_FOLDER, Ledger, build_module
from deltart.folders import staged
from deltart.plurals import counted

# Lowered from the float32 trace of every export. TensorRT's own, in bfloat16, is traced when asked for.
TARGETS = {"portable": portable.BODIES, "ort": ort.BODIES}
# On ONNX Runtime a convolution state may be read after its successor is written; portable bodies promise no order.
IN_PLACE = {"S": ["ort", "tensorrt"], "k": ["ort", "tensorrt"], "v": ["ort", "tensorrt"], "conv": ["tensorrt"]}

Report = Callable[[str], None]


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    max_context: int | None = None,
    yarn: float | None = None,
    mtp: bool = True,
    for_tensorrt: bool = False,
    overwrite: bool = False,
    report: Report = lambda step: None,
) -> manifest.Manifest:
    """Export `checkpoint` to the artifact folder `output`; no tensor is read or copied.

    Args:
        max_context: longest sequence the runtime may serve, in tokens; the model's own limit when None.
        yarn: static YaRN factor, or None for the checkpoint's own RoPE.
        mtp: whether to export the MTP head where the checkpoint has one.
        for_tensorrt: whether to write the TensorRT graphs too; `deltart build` adds them otherwise.
        overwrite: replace an artifact that is already there, with nothing in it that deltart did not write.
        report: called with a line for every step.

    Raises:
        ConfigError, CheckpointError: the input is broken or unsupported; nothing is written.
        ExportError: the options can't be served.
        OutputError: the output can't be written or must not be replaced; it is as it was.
    """
    spec = read_spec(checkpoint)
    if yarn is not None:
        spec = spec.with_yarn(yarn)
    context = _context(spec, max_context)
    lacks = check_text(checkpoint)
    tensors = Checkpoint(checkpoint)
    settled = settle(spec, tensors)
    spec = settled.spec
    size = f"{counted(len(tensors), 'tensor')} in {counted(len(tensors.files), 'file')}"
    report(f"{spec.architecture}: {counted(len(spec.layer_types), 'layer')}, {size}")
    for sentence in (*settled, *lacks):
        report(sentence)
    ledger = account(spec, tensors, mtp)
    with staged(output, manifest.ARTIFACT, overwrite=overwrite, sources=[checkpoint]) as staging:
        entries = _write_graphs(spec, tensors, staging, mtp, report)
        _link_weights(tensors, staging, report)
        _check(staging, entries, report)
        text_files = bring_text(checkpoint, staging)
        result = _manifest(spec, checkpoint, ledger, entries, context, text_files)
        result.save(staging)
        if for_tensorrt:
            tensorrt.lower_artifact(staging, report)
    return manifest.load_manifest(output)


def account(spec: ModelSpec, tensors: Checkpoint, mtp: bool = True) -> Ledger:
    """The fate of every tensor, settled before anything is traced or written. Raises as `export_checkpoint` does."""
    spec = settle(spec, tensors).spec
    ledger = _open_ledger(spec, tensors, mtp)
    for graph in graphs_of(spec, torch.float32, mtp):
        for block in graph.blocks:
            module = build_module(block, spec, tensors)
            ledger.bind((block.tensor_name(name) for name, _ in module.named_parameters()), graph.name)
    ledger.settle()
    tensors.check_layout()
    return ledger


def _context(spec: ModelSpec, requested: int | None) -> int:
    limit = spec.context_limit
    if requested is None:
        return limit
    if not 1 <= requested <= limit:
        stretch = "rope_parameters.factor in config.json" if spec.rope.yarn else "yarn=FACTOR (--yarn FACTOR)"
        raise ExportError(
            f"a context of {requested} tokens", f"1 to {limit}, the model's limit", f"a larger one needs {stretch}"
        )
    return requested


def _open_ledger(spec: ModelSpec, tensors: Checkpoint, mtp: bool) -> Ledger:
    ledger = Ledger(tensors)
    for prefix, reason in deferred_of(spec, mtp):
        ledger.defer(prefix, reason)
    return ledger


def _write_graphs(
    spec: ModelSpec, tensors: Checkpoint, staging: Path, mtp: bool, report: Report
) -> dict[str, manifest.GraphEntry]:
    graphs = graphs_of(spec, torch.float32, mtp)
    report("tracing each kind of block")
    tracer = Tracer(spec, tensors, torch.float32, graphs)
    report("assembling " + " and ".join(graph.name for graph in graphs))
    entries = {}
    for graph in graphs:
        model, weights = assemble(graph, tracer)
        files = {}
        for target, bodies in TARGETS.items():
            files[target] = f"{graph.name}.onnx" if target == "portable" else f"{graph.name}.{target}.onnx"
            (staging / files[target]).write_bytes(lower(model, bodies).SerializeToString(deterministic=True))
        entries[graph.name] = _graph_entry(graph, files, weights)
    return entries


def _graph_entry(graph: ModelGraph, files: dict[str, str], weights: list[str]) -> manifest.GraphEntry:
    def tensor(name: str) -> manifest.TensorEntry:
        value = graph.values[name]
        return manifest.TensorEntry(name, value.element_type(torch.float32).name, list(value.axes))

    def carried(state: State) -> manifest.StateEntry:
        in_place = IN_PLACE[state.name.rsplit(".")[-1]]
        dtype = state.element_type(torch.float32).name
        return manifest.StateEntry(state.name, state_output(state), dtype, list(state.axes), in_place)

    states = [carried(state) for state in graph.states]
    inputs, outputs = [tensor(i) for i in graph.inputs], [tensor(o) for o in graph.outputs]
    return manifest.GraphEntry(files, inputs, outputs, states, weights)


def _link_weights(tensors: Checkpoint, staging: Path, report: Report) -> None:
    """Hard-link the vendor's files into the artifact, so that any runtime finds them; no byte is copied."""
    folder = staging / WEIGHTS_FOLDER
    folder.mkdir()
    for file in tensors.files:
        try:
            os.link((tensors.folder / file.name).resolve(), folder / file.name)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            report(f"{file.name} can't be hard-linked ({error.strerror}): deltart will map it from {tensors.folder}")


def _check(staging: Path, entries: dict[str, manifest.GraphEntry], report: Report) -> None:
    """Run the ONNX checker, shape inference included, with the weights as inputs.

    The checker refuses external data in hard-linked files, and the weights' places were checked when read.
    """
    report("checking the ONNX graphs")
    for entry in entries.values():
        model = onnx.load(staging / entry.files["portable"], load_external_data=False)
        graph = model.graph
        graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in graph.initializer)
        del graph.initializer[:]
        onnx.checker.check_model(model, full_check=True)


def _manifest(
    spec: ModelSpec,
    checkpoint: Path,
    ledger: Ledger,
    entries: dict[str, manifest.GraphEntry],
    context: int,
    text_files: list[str],
) -> manifest.Manifest:
    def entry(name: str) -> manifest.WeightEntry:
        info = ledger.checkpoint.at(name)
        bound = name in ledger.bound or name in regions
        fate, reason = ("bound", "") if bound else ("deferred", ledger.deferred[name])
        count = len(info.members) if isinstance(info, Region) else 1
        return manifest.WeightEntry(
            fate, info.dtype, list(info.shape), info.file, info.offset, info.nbytes, reason, count
        )

    regions = {name for graph in entries.values() for name in graph.weights} & ledger.checkpoint.regions.keys()
    covered = {member for name in regions for member in ledger.checkpoint.regions[name].members}

    return manifest.Manifest(
        architecture=spec.architecture,
        checkpoint=str(checkpoint.resolve()),
        files=[manifest.FileEntry(**asdict(f)) for f in ledger.checkpoint.files],
        spec=_spec_fields(spec),
        precision={"activations": "float32", "S": "float32", "kv": "float32", "logits": "float32"},
        max_context=context,
        vocab_size=spec.vocab_size,
        graphs=entries,
        tensors={name: entry(name) for name in [*sorted(regions), *ledger.checkpoint] if name not in covered},
        text_files=text_files,
        versions={"deltart": deltart.__version__} | {p: version(p) for p in ("torch", "onnx", "onnxscript")},
    )


def _spec_fields(spec: ModelSpec) -> dict[str, Any]:
    fields = asdict(spec)
    fields["fp8"] = spec.fp8 is not None  # which tensors are quantized they say themselves
    return fields
