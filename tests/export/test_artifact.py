"""What an export leaves: readable graphs, a checked manifest, weights that are links, and printed IR as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deltart.artifact import load_manifest
from deltart.errors import ArtifactError
from deltart.export.pipeline import export_checkpoint
from deltart.runtime.backends.ort import OrtBackend
from support.cases import Export

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def load(artifact: Path, name: str) -> onnx.ModelProto:
    return onnx.load(artifact / name, load_external_data=False)


@pytest.mark.parametrize("name", ["model.onnx", "mtp.onnx"])
def test_portable_graphs_use_standard_ops_only(name: str, exported: Export) -> None:
    model = load(exported("fp8").artifact, name)
    assert {o.domain: o.version for o in model.opset_import} == {"": 24, "deltart": 1, "deltart.layers": 1}
    known = {(f.domain, f.name) for f in model.functions}
    for function in model.functions:
        for node in function.node:
            assert node.domain == "" or (node.domain, node.op_type) in known


def test_one_node_per_layer_named_as_in_the_checkpoint(exported: Export) -> None:
    graph = load(exported("heads-2-4").artifact, "model.onnx").graph
    assert [n.name for n in graph.node] == ["embed", "rotary", *(f"layers.{i}" for i in range(12)), "head"]
    kinds = [n.op_type for n in graph.node[2:-1]]
    assert kinds == (["GatedDeltaNetLayer"] * 3 + ["GatedAttentionLayer"]) * 3
    assert "model.layers.0.linear_attn.in_proj_qkv.weight" in graph.node[2].input


@pytest.mark.parametrize("kind", ["GatedDeltaNetLayer", "GatedAttentionLayer", "Head", "MtpFusion", "RotaryTable"])
def test_traced_blocks_read_as_they_did(kind: str, exported: Export) -> None:
    """Golden prints: regenerate with `python tests/golden/regenerate.py` and read the difference."""
    artifact = exported("fp8").artifact
    models = [load(artifact, name) for name in ("model.onnx", "mtp.onnx")]
    function = next(f for m in models for f in m.functions if f.name == kind)
    assert onnx.printer.to_text(function) == (GOLDEN / f"{kind}.txt").read_text()


def test_nothing_is_copied(exported: Export) -> None:
    case = exported("fp8")
    assert os.path.samefile(case.checkpoint / "model.safetensors", case.artifact / "weights" / "model.safetensors")
    written = sum(p.stat().st_size for p in case.artifact.rglob("*") if p.is_file() and p.stat().st_nlink == 1)
    assert written < 1_000_000


def test_plain_onnxruntime_runs_the_portable_graph(exported: Export) -> None:
    """No code of this project: ONNX Runtime alone finds the weights through the hard links."""
    artifact = exported("heads-1-3").artifact
    session = ort.InferenceSession(str(artifact / "model.onnx"), providers=["CPUExecutionProvider"])
    sizes = {"B": 1, "T": 3, "L": 1, "capacity": 4}
    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    feeds = {
        i.name: np.zeros([sizes.get(d, d) for d in i.shape], kinds[i.type])  # an axis is a size or a name
        for i in session.get_inputs()
    }
    feeds["n_tokens"][:] = feeds["n_commit"][:] = 3
    logits = session.run(["logits"], feeds)[0]
    assert logits.shape == (1, 1, 320) and np.isfinite(logits).all()


def test_manifest_round_trip_and_faults(exported: Export, tmp_path: Path) -> None:
    manifest = load_manifest(exported("fp8").artifact)
    manifest.save(tmp_path)
    assert load_manifest(tmp_path) == manifest
    states = {s.name: s for s in manifest.graphs["model"].states}
    assert states["layers.0.S"].in_place == ["ort", "tensorrt"] and states["layers.0.conv"].in_place == ["tensorrt"]
    assert all(entry.fate == "bound" for entry in manifest.tensors.values())

    raw = json.loads((tmp_path / "manifest.json").read_text())
    for damage, words in (
        ({**raw, "format": 99}, "format 99"),
        ({k: v for k, v in raw.items() if k != "graphs"}, "missing required field `graphs`"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(damage))
        with pytest.raises(ArtifactError, match=words):
            load_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="holds no manifest"):
        load_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_manifest(tmp_path / "nowhere")


def test_changed_or_missing_weights_are_refused(exported: Export, tmp_path: Path) -> None:
    case = exported("fp8")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in case.checkpoint.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    artifact = tmp_path / "artifact"
    export_checkpoint(checkpoint, artifact, mtp=False)
    with pytest.raises(ArtifactError, match="no 'mtp' graph"):
        OrtBackend(artifact).session("mtp")
    weights = checkpoint / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(ArtifactError, match="is not the file that was exported"):
        OrtBackend(artifact)
    weights.unlink()
    (artifact / "weights" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors is missing"):
        OrtBackend(artifact)


def test_overwrite_replaces_an_artifact(exported: Export, tmp_path: Path) -> None:
    checkpoint = exported("heads-1-3").checkpoint
    export_checkpoint(checkpoint, tmp_path / "artifact")
    export_checkpoint(checkpoint, tmp_path / "artifact", mtp=False, max_context=64, overwrite=True)
    manifest = load_manifest(tmp_path / "artifact")
    assert list(manifest.graphs) == ["model"] and manifest.max_context == 64
    assert {e.reason for n, e in manifest.tensors.items() if n.startswith("mtp.")} == {"MTP head left out on request"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["artifact"]
