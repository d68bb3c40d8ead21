"""Reading a graph's border off its bytes: equal to the onnx package's, and compared with the manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltart.artifact import load_manifest
from deltart.dtypes import BY_ONNX
from deltart.errors import ArtifactError
from deltart.manifest import GraphEntry, Manifest, TensorEntry
from deltart.runtime.backends.onnx_border import _read, check_border
from support.cases import Export


@pytest.mark.parametrize("case", ["fp8", "tied", "yarn"])
@pytest.mark.parametrize("target", ["portable", "ort"])
def test_it_is_what_the_onnx_package_reads(case: str, target: str, exported: Export) -> None:
    artifact = exported(case).artifact
    manifest = load_manifest(artifact)
    for name, entry in manifest.graphs.items():
        content = (artifact / entry.files[target]).read_bytes()
        border, graph = _read(memoryview(content)), onnx.load_model_from_string(content).graph
        for found, values in ((border.inputs, graph.input), (border.outputs, graph.output)):
            assert found == {v.name: _tensor(v) for v in values}
        outside = [w for w in graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL]
        places = {w.name: {e.key: e.value for e in w.external_data} for w in outside}
        kinds = {w.name: {"dtype": BY_ONNX[w.data_type].stored, "shape": list(w.dims)} for w in outside}
        assert border.weights == {name: kinds[name] | place for name, place in places.items()}
        check_border(content, entry, manifest, name)


def _tensor(value: onnx.ValueInfoProto) -> tuple[str, list[str | int]]:
    kind = value.type.tensor_type
    return BY_ONNX[kind.elem_type].name, [d.dim_param or d.dim_value for d in kind.shape.dim]


Change = Callable[[GraphEntry], GraphEntry]


def state(change: dict[str, Any]) -> Change:
    return lambda entry: replace(entry, states=[replace(entry.states[0], **change), *entry.states[1:]])


CHANGES: dict[str, Change] = {
    "a state's type": state({"dtype": "float16"}),
    "a state's axes": state({"axes": ["B", 3, 128, 128]}),
    "a state's name": state({"name": "x"}),
    "a state's output": state({"output": "x"}),
    "a state less": lambda entry: replace(entry, states=entry.states[1:]),
    "an input less": lambda entry: replace(entry, inputs=entry.inputs[1:]),
    "an output's axes": lambda entry: replace(entry, outputs=[replace(entry.outputs[0], axes=["B"])]),
    "a weight less": lambda entry: replace(entry, weights=entry.weights[1:]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_manifest_that_says_otherwise_is_refused(change: Change, exported: Export) -> None:
    artifact = exported("fp8").artifact
    manifest = load_manifest(artifact)
    entry = manifest.graphs["model"]
    content = (artifact / entry.files["ort"]).read_bytes()
    with pytest.raises(ArtifactError, match="as the manifest says"):
        check_border(content, change(entry), manifest, "model")


def test_weights_elsewhere_are_refused(exported: Export) -> None:
    artifact = exported("fp8").artifact
    manifest = load_manifest(artifact)
    model = onnx.load(artifact / "model.ort.onnx", load_external_data=False)
    for key, value in (("location", "../../etc/passwd"), ("offset", "0"), ("length", "1")):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        next(e for e in changed.graph.initializer[0].external_data if e.key == key).value = value
        with pytest.raises(ArtifactError, match="weight"):
            check_border(changed.SerializeToString(), manifest.graphs["model"], manifest, "model")


@given(st.binary(max_size=200) | st.builds(lambda n: b"\x3a" * n + b"\x10", st.integers(0, 50)))
def test_other_bytes_are_an_error(content: bytes) -> None:
    entry = GraphEntry({}, [TensorEntry("input_ids", "int64", ["B"])], [], [], [])
    manifest = Manifest("", "", [], {}, {}, 1, 1, {"model": entry}, {}, [])
    with pytest.raises(ArtifactError):
        check_border(content, entry, manifest, "x")
