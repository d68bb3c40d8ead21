"""The manifest of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from deltart import manifest
from deltart.export.bound import BoundModel
from deltart.export.graph import State
from deltart.export.ledger import Ledger
from deltart.export.regions import Region
from deltart.export.spec import ModelSpec
from deltart.export.states import state_output
from deltart.export.targets import Written
from deltart.identity import identify
from deltart.version import __version__


def describe(
    ledger: Ledger,
    model: BoundModel,
    graphs: Sequence[Written],
    max_context: int,
    text_files: list[str],
    vision: manifest.VisionEntry | None,
    int4_activations: manifest.Int4Activations = "exact",
) -> manifest.Manifest:
    """What was written, from what, and how to bind it."""
    folder = model.checkpoint.folder
    return manifest.Manifest(
        architecture=model.spec.architecture,
        checkpoint=str(folder.resolve()),
        files=[manifest.FileEntry(**asdict(f), identity=identify(folder / f.name)) for f in model.checkpoint.files],
        spec=_spec_fields(model.spec),
        max_context=max_context,
        vocab_size=model.spec.vocab_size,
        graphs={written.bound.graph.name: _graph_entry(written, model) for written in graphs},
        tensors=_weight_entries(ledger, graphs),
        text_files=text_files,
        vision=vision,
        int4_activations=int4_activations,
        versions={"deltart": __version__} | {p: version(p) for p in ("torch", "onnx", "onnxscript")},
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
    """The regions that graphs read, then every tensor outside of them."""
    checkpoint = ledger.checkpoint
    regions = {name for written in graphs for name in written.weights} & checkpoint.regions.keys()
    covered = {member for name in regions for member in checkpoint.regions[name].members}

    def entry(name: str) -> manifest.WeightEntry:
        info = checkpoint.at(name)
        bound = name in ledger.bound or name in regions
        fate, reason = ("bound", "") if bound else ("deferred", ledger.deferred[name])
        count = len(info.members) if isinstance(info, Region) else 1
        return manifest.WeightEntry(
            fate, info.dtype, list(info.shape), info.file, info.offset, info.nbytes, reason, count
        )

    return {name: entry(name) for name in [*sorted(regions), *checkpoint] if name not in covered}


def _spec_fields(spec: ModelSpec) -> dict[str, Any]:
    fields = asdict(spec)
    fields["fp8"] = spec.fp8 is not None  # which tensors are quantized they say themselves
    fields["compressed"] = spec.compressed is not None
    return fields
