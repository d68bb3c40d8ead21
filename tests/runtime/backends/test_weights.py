"""Weight files that changed after an export: other content is an error, a rewritten file is said to be one."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from deltart.artifact import load_manifest
from deltart.errors import ArtifactError, WeightsRewrittenWarning
from deltart.export.pipeline import export_checkpoint
from deltart.identity import SAMPLE_BYTES
from deltart.runtime.backends.weights import MappedWeights
from support.cases import Export

NAME = "model.safetensors"


@pytest.fixture(scope="module")
def original(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and an artifact of it."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(exported("heads-2-2").checkpoint, folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "artifact")
    return folder


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    """A copy of the artifact; its weights are the same file still."""
    shutil.copytree(original / "artifact", tmp_path / "artifact", copy_function=os.link)
    return tmp_path / "artifact"


def open_quietly(artifact: Path) -> MappedWeights:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return MappedWeights(artifact, load_manifest(artifact))


def own_copy(artifact: Path, keeps_time: bool) -> Path:
    """Replace the link by a copy."""
    path = artifact / "weights" / NAME
    (shutil.copy2 if keeps_time else shutil.copyfile)(path, artifact / "copy")
    os.replace(artifact / "copy", path)
    return path


def test_values_are_the_librarys(artifact: Path) -> None:
    weights = open_quietly(artifact)
    for name, value in safetensors.numpy.load_file(artifact / "weights" / NAME).items():
        np.testing.assert_array_equal(weights[name], value)


def test_a_copy_that_keeps_the_time_is_the_same(artifact: Path) -> None:
    own_copy(artifact, keeps_time=True)
    open_quietly(artifact)


def test_a_later_copy_is_said_to_be_one(artifact: Path) -> None:
    own_copy(artifact, keeps_time=False)
    with pytest.warns(WeightsRewrittenWarning, match="is a copy that was written after the export"):
        MappedWeights(artifact, load_manifest(artifact))


def test_another_fine_tune_of_the_same_header_is_refused(artifact: Path) -> None:
    path = own_copy(artifact, keeps_time=False)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    values = np.fromfile(path, np.float32, offset=start)
    path.write_bytes(path.read_bytes()[:start] + (values * np.float32(1.001)).tobytes())
    with pytest.raises(ArtifactError, match="not the file that was exported"):
        MappedWeights(artifact, load_manifest(artifact))


def test_one_byte_written_in_place_is_said(original: Path, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(original / "artifact", tmp_path / "artifact", copy_function=os.link))
    path = artifact / "weights" / NAME
    before = path.stat()
    byte = path.read_bytes()[before.st_size - SAMPLE_BYTES - 10]
    try:
        with path.open("r+b") as file:
            file.seek(before.st_size - SAMPLE_BYTES - 10)
            file.write(bytes([byte ^ 1]))
        with pytest.warns(WeightsRewrittenWarning, match="was written after the export"):
            MappedWeights(artifact, load_manifest(artifact))
    finally:
        with path.open("r+b") as file:
            file.seek(before.st_size - SAMPLE_BYTES - 10)
            file.write(bytes([byte]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_cut_off_or_no_file_is_refused(artifact: Path) -> None:
    path = own_copy(artifact, keeps_time=True)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ArtifactError, match="not the file that was exported"):
        MappedWeights(artifact, load_manifest(artifact))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match="is a pipe"):
        MappedWeights(artifact, load_manifest(artifact))


def test_a_manifest_with_a_tensor_elsewhere_is_refused(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    name = "model.norm.weight"
    entry = replace(manifest.tensors[name], offset=manifest.tensors[name].offset - 4)
    with pytest.raises(ArtifactError, match=r"'model\.norm\.weight' elsewhere"):
        MappedWeights(artifact, replace(manifest, tensors={**manifest.tensors, name: entry}))
    fewer = {n: t for n, t in manifest.tensors.items() if n != name}
    with pytest.raises(ArtifactError, match=r"lacks 'model\.norm\.weight'"):
        MappedWeights(artifact, replace(manifest, tensors=fewer))
    with pytest.raises(ArtifactError, match="'x' elsewhere"):
        MappedWeights(artifact, replace(manifest, tensors={**manifest.tensors, "x": entry}))


def test_a_region_stands_for_the_tensors_in_it(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    inside = sorted(manifest.tensors.items(), key=lambda item: item[1].offset)[3:6]
    first, nbytes = inside[0][1], sum(entry.nbytes for _, entry in inside)
    others = {n: t for n, t in manifest.tensors.items() if n not in dict(inside)}
    region = replace(first, nbytes=nbytes, shape=[nbytes // 4])
    MappedWeights(artifact, replace(manifest, tensors={**others, "region": region}))
    with pytest.raises(ArtifactError, match="lacks"):
        shorter = replace(region, nbytes=nbytes - inside[2][1].nbytes)
        MappedWeights(artifact, replace(manifest, tensors={**others, "region": shorter}))
    with pytest.raises(ArtifactError, match="'region' elsewhere"):
        MappedWeights(artifact, replace(manifest, tensors={**others, "region": replace(region, nbytes=nbytes - 4)}))
