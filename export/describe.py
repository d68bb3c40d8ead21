"""The manifest of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import deltart
from deltart import manifest
from deltart.export.bound import BoundModel
from deltart.export.graph import State
from deltart.export.ledger import Ledger
from deltart.export.regions import Region
from deltart.export.spec import ModelSpec
from deltart.export.states import state_output
from deltart.export.targets import Written
from deltart.safetensors import TensorInfo


def describe(
    ledger: Ledger, model: BoundModel, graphs: Sequence[Written], max_context: int, text_files: list[str]
) -> manifest.Manifest:
    """What was written, from what, and how to bind it."""
    return manifest.Manifest(
        architecture=model.spec.architecture,
        checkpoint=str(model.checkpoint.folder.resolve()),
        files=[manifest.FileEntry(**asdict(file)) for file in model.checkpoint.files],
        spec=_spec_fields(model.spec),
        max_context=max_context,
        vocab_size=model.spec.vocab_size,
        graphs={written.bound.graph.name: _graph_entry(written, model) for written in graphs},
        tensors=_weight_entries(ledger, graphs),
        text_files=text_files,
        versions={"deltart": deltart.__version__} | {p: version(p) for p in ("torch", "onnx", "onnxscript")},
    )


def _graph_entry(written: Written, model: BoundModel) -> manifest.GraphEntry:
    graph = written.bound.graph

    def tensor(name: str) -> manifest.TensorEntry:
        value = graph.values[name]
        return manifest.TensorEntry(name, value.element_type(model.dtype).name, list(value.axes))

    def carried(state: State) -> manifest.StateEntry:
        dtype, in_place = state.element_type(model.dtype).name, written.in_place[state.name]
        return manifest.StateEntry(state.name, state_output(state), dtype, list(state.axes), in_place)

    states = [carried(state) for state in graph.states]
    inputs, outputs = [tensor(i) for i in graph.inputs], [tensor(o) for o in graph.outputs]
    return manifest.GraphEntry(written.files, inputs, outputs, states, list(written.weights))


def _weight_entries(ledger: Ledger, graphs: Sequence[Written]) -> dict[str, manifest.WeightEntry]:
    """Every tensor, those in a region that a graph reads as that one."""
    checkpoint = ledger.checkpoint
    regions = sorted({name for written in graphs for name in written.weights} & checkpoint.regions.keys())
    covered = {member for name in regions for member in checkpoint.regions[name].members}
    entries = {name: _weight_entry(checkpoint.regions[name], "") for name in regions}
    for name, info in checkpoint.items():
        if name not in covered:
            entries[name] = _weight_entry(info, "" if name in ledger.bound else ledger.deferred[name])
    return entries


def _weight_entry(info: TensorInfo, reason: str) -> manifest.WeightEntry:
    """Of a tensor or region that is left out for `reason`; bound where that is empty."""
    fate, count = "deferred" if reason else "bound", len(info.members) if isinstance(info, Region) else 1
    return manifest.WeightEntry(fate, info.dtype, list(info.shape), info.file, info.offset, info.nbytes, reason, count)


def _spec_fields(spec: ModelSpec) -> dict[str, Any]:
    fields = asdict(spec)
    fields["fp8"] = spec.fp8 is not None  # the skip list is in config.json, beside the manifest
    return fields
