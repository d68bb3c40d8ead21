"""`export --overwrite` replaces artifacts and nothing else, whatever it is pointed at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deltart.artifact import load_manifest
from deltart.errors import OutputError
from deltart.export.pipeline import export_checkpoint
from support.cases import Export


@pytest.fixture
def place(exported: Export, tmp_path: Path) -> Path:
    """A folder with a checkpoint and an artifact that was built and verified."""
    case = exported("heads-1-3")
    shutil.copytree(case.checkpoint, tmp_path / "checkpoint")
    shutil.copytree(case.artifact, tmp_path / "artifact")
    for name in ("report.html", "report.json", "model.tensorrt.onnx", "engine/rtx/engine.json"):
        path = tmp_path / "artifact" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("model.decode.plan", "model.decode.json", "timings.0123.cache", "model.decode.0123.kernels"):
        (tmp_path / "artifact" / "engine" / "rtx" / name).touch()
    return tmp_path


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.lstat().st_ino, p.lstat().st_size) for p in folder.rglob("*")}


def test_an_artifact_is_replaced_with_what_our_commands_added(place: Path) -> None:
    """Of another format too: that one can't be used any more is a reason to replace it."""
    path = place / "artifact" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "more": 1}))
    export_checkpoint(place / "checkpoint", place / "artifact", mtp=False, overwrite=True)
    assert list(load_manifest(place / "artifact").graphs) == ["model"]
    assert not (place / "artifact" / "engine").exists()
    assert sorted(p.name for p in place.iterdir()) == ["artifact", "checkpoint"]


def web_application(place: Path) -> Path:
    shutil.rmtree(place / "artifact")
    (place / "artifact" / "src").mkdir(parents=True)
    (place / "artifact" / "manifest.json").write_text('{"name": "app", "version": "1", "manifest_version": 3}')
    return place / "artifact"


def manifest_of(content: object) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / "artifact" / "manifest.json").write_text(json.dumps(content))
        return place / "artifact"

    return make


def parent_with_a_manifest(place: Path) -> Path:
    shutil.copyfile(place / "artifact" / "manifest.json", place / "manifest.json")
    return place


def checkpoint_with_a_manifest(place: Path) -> Path:
    shutil.copyfile(place / "artifact" / "manifest.json", place / "checkpoint" / "manifest.json")
    return place / "checkpoint"


def link_to_the_checkpoint(place: Path) -> Path:
    (place / "link").symlink_to("checkpoint")
    return place / "link"


def weights_that_the_checkpoint_links_to(place: Path) -> Path:
    (place / "checkpoint" / "model.safetensors").unlink()
    (place / "checkpoint" / "model.safetensors").symlink_to("../artifact/weights/model.safetensors")
    return place / "artifact"


def inside_the_checkpoint(place: Path) -> Path:
    return (place / "artifact").rename(place / "checkpoint" / "onnx")


def with_a_file(name: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / "artifact" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "artifact" / name).write_text("precious")
        return place / "artifact"

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (web_application, "not an artifact"),
        (manifest_of([]), "not an artifact"),
        (manifest_of({"format": 1}), "not an artifact"),
        (manifest_of({"format": 1, "versions": {"deltart": "1"}, "tensors": [], "graphs": {}}), "not an artifact"),
        (lambda place: place, "not an artifact"),
        (lambda place: place / "checkpoint", "not an artifact"),
        (link_to_the_checkpoint, "not an artifact"),
        (parent_with_a_manifest, "checkpoint, which is to be read"),
        (checkpoint_with_a_manifest, "checkpoint, which is to be read"),
        (weights_that_the_checkpoint_links_to, "a file of"),
        (inside_the_checkpoint, "is inside"),
        (with_a_file("notes.txt"), "did not write: notes.txt"),
        (with_a_file("lora/adapter.safetensors"), "did not write: lora/"),
        (with_a_file("weights/mine.safetensors"), "did not write: weights/mine.safetensors"),
        (with_a_file("engine/rtx/notes.md"), "did not write: engine/rtx/notes.md"),
        (with_a_file("other.onnx"), "did not write: other.onnx"),
        (with_a_file(".git/config"), "did not write: .git/"),
    ],
)
def test_refused_without_a_trace(place: Path, make: Callable[[Path], Path], words: str) -> None:
    output = make(place)
    before = snapshot(place)
    with pytest.raises(OutputError, match=words):
        export_checkpoint(place / "checkpoint", output, overwrite=True)
    assert snapshot(place) == before


def test_only_weights_are_shared_with_the_checkpoint(exported: Export) -> None:
    """So that an edit of the artifact's generation_config.json is none of the checkpoint's."""
    case = exported("heads-1-3")
    names = load_manifest(case.artifact).text_files
    assert "config.json" in names
    assert not any(os.path.samefile(case.checkpoint / name, case.artifact / name) for name in names)
    assert os.path.samefile(case.checkpoint / "model.safetensors", case.artifact / "weights" / "model.safetensors")
