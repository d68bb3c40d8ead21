"""The manifest: what was written comes back, what was changed or could not have been written is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltart import manifest as manifests
from deltart.artifact import load_manifest, read_graph
from deltart.errors import ArtifactError
from support.cases import Export
from support.seeing import Seeing

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def artifact(exported: Export, tmp_path: Path) -> Path:
    """A copy of an artifact whose files may be changed."""
    return Path(shutil.copytree(exported("heads-1-3").artifact, tmp_path / "artifact"))


def rewrite(artifact: Path, change: Change, signed: bool) -> None:
    """Change the manifest, and state its hash anew as somebody who knows how would."""
    path = artifact / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    if signed:
        del raw[manifests.DIGEST]
        raw[manifests.DIGEST] = manifests.digest(raw)
    path.write_text(json.dumps(raw))


def tensor(raw: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = raw["tensors"]["model.norm.weight"]
    return entry


def text(raw: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = raw["graphs"]["model"]
    return graph


WRONG: dict[str, tuple[Change, str]] = {
    "a field of another type": (lambda raw: raw.update(max_context="64"), "max_context: expected `int`"),
    "a number that is true": (lambda raw: raw.update(vocab_size=True), "vocab_size"),
    "a field less": (lambda raw: raw.pop("graphs"), "missing required field `graphs`"),
    "a field more": (lambda raw: raw.update(extra=1), "unknown field 'extra'"),
    "another format": (lambda raw: raw.update(format=99), "format 99"),
    "no context": (lambda raw: raw.update(max_context=0), "max_context is 0"),
    "a vocabulary beyond the graph's": (lambda raw: raw.update(vocab_size=7), "logits is"),
    "no text graph": (lambda raw: raw["graphs"].pop("model"), "graphs is"),
    "a path for a text file": (lambda raw: raw["text_files"].append("../x"), "text_files is '../x'"),
    "a path for a graph": (lambda raw: text(raw)["files"].update(ort="/etc/passwd"), "files 'ort' is '/etc/passwd'"),
    "a path for weights": (lambda raw: raw["files"][0].update(name="../w"), r"files is '\.\./w'|file is"),
    "weights twice": (lambda raw: raw["files"].append(raw["files"][0]), "files is"),
    "a negative size": (lambda raw: raw["files"][0].update(size=-1), "size of"),
    "a short hash": (lambda raw: raw["files"][0].update(header_sha256="ab"), "header_sha256"),
    "a tensor in no file": (lambda raw: tensor(raw).update(file="other"), "'model.norm.weight': file is 'other'"),
    "a tensor past the end": (lambda raw: tensor(raw).update(offset=10**12), "offset and nbytes"),
    "a tensor before the start": (lambda raw: tensor(raw).update(offset=-8), "offset and nbytes"),
    "a tensor beyond 64 bits": (lambda raw: tensor(raw).update(offset=2**70), "offset and nbytes"),
    "another size than its shape": (lambda raw: tensor(raw).update(nbytes=2), "nbytes is 2"),
    "an unknown type": (lambda raw: tensor(raw).update(dtype="F4"), "dtype is 'F4'"),
    "an unknown fate": (lambda raw: tensor(raw).update(fate="lost"), "fate is 'lost'"),
    "a weight that is no tensor": (lambda raw: text(raw)["weights"].append("x"), "weights is 'x'"),
    "a weight twice": (lambda raw: text(raw)["weights"].append("model.norm.weight"), "inputs is"),
    "an unknown type of a state": (lambda raw: text(raw)["states"][0].update(dtype="f"), "dtype is 'f'"),
    "an unknown axis of a state": (lambda raw: text(raw)["states"][0]["axes"].append("T"), "axes is"),
    "a state without slots": (lambda raw: text(raw)["states"][0]["axes"].pop(0), "axes is"),
    "an axis of nothing": (lambda raw: text(raw)["inputs"][0]["axes"].append(0), "axes is"),
    "two states of one name": (lambda raw: text(raw)["states"].append(text(raw)["states"][0]), "inputs is"),
}


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=list(WRONG))
def test_what_no_export_writes_is_refused(change: Change, words: str, signed: bool, artifact: Path) -> None:
    rewrite(artifact, change, signed)
    with pytest.raises(ArtifactError, match=words):
        load_manifest(artifact)


WRONG_VISION: dict[str, Any] = {
    "graph": "towers", "patch": 0, "merge": -1, "max_patches": 2**31, "min_frames": 769, "head_dim": 70, "fps": 0.0,
    "image_pixels": [9, 8], "video_pixels": [0, 8], "mean": [0.5, 0.5], "std": [0.5, 0.0, 0.5], "resample": "nearest",
    "wrapper": "none", "tokens": {"image_pad": 1}, "rope_theta": 1.0, "frame_cap": 1,
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG_VISION)
def test_what_no_export_says_of_pictures_is_refused(field: str, seeing: Seeing, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(seeing.artifact, tmp_path / "artifact"))
    rewrite(artifact, lambda raw: raw["vision"].update({field: WRONG_VISION[field]}), signed=True)
    with pytest.raises(ArtifactError, match=field):
        load_manifest(artifact)


CHANGED: dict[str, Change] = {
    "an in-place state": lambda raw: text(raw)["states"][1].update(in_place=["ort", "portable", "tensorrt"]),
    "a smaller context": lambda raw: raw.update(max_context=63),
    "states exchanged": lambda raw: text(raw)["states"].reverse(),
    "another architecture": lambda raw: raw.update(architecture="Qwen3ForCausalLM"),
    "no hash": lambda raw: raw.pop(manifests.DIGEST),
    "another hash": lambda raw: raw.update({manifests.DIGEST: "0" * 64}),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=list(CHANGED))
def test_a_change_is_noticed(change: Change, artifact: Path) -> None:
    rewrite(artifact, change, signed=False)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        load_manifest(artifact)


def test_layout_and_the_checkpoints_place_may_change(artifact: Path) -> None:
    before = load_manifest(artifact)
    rewrite(artifact, lambda raw: raw.update(checkpoint="/elsewhere"), signed=False)
    assert load_manifest(artifact).tensors == before.tensors


def test_a_graph_is_the_exported_one_or_refused(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    path = artifact / "model.ort.onnx"
    assert read_graph(artifact, manifest, "model", "ort") == path.read_bytes()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="not the graph that was exported"):
        read_graph(artifact, manifest, "model", "ort")
    path.unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        read_graph(artifact, manifest, "model", "ort")
    with pytest.raises(ArtifactError, match="no 'model' graph for target 'tensorrt'"):
        read_graph(artifact, manifest, "model", "tensorrt")
