"""The outside reference: transformers' and safetensors' own reading, and no pass without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deltart.artifact import load_manifest
from deltart.cli import main
from deltart.errors import ArtifactError
from deltart.export.pipeline import export_checkpoint
from deltart.verify.reference import ReferenceModel
from support.cases import Export

IDS = np.arange(5, 25)


@pytest.fixture
def made(exported: Export, tmp_path: Path) -> Path:
    """A folder with a checkpoint that may be changed and its artifact."""
    shutil.copytree(exported("heads-2-2").checkpoint, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact")
    return tmp_path


def test_it_is_transformers_own_loading(made: Path) -> None:
    points = ReferenceModel(load_manifest(made / "artifact")).points(IDS)
    model = AutoModelForCausalLM.from_pretrained(made / "checkpoint", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(IDS[None])).logits[0].numpy()
    np.testing.assert_array_equal(points["logits"], logits)
    assert {"embed.h", "layers.0.h", "hidden"} < set(points)


@pytest.mark.parametrize("case", ["fp8", "tied", "yarn"])
def test_other_kinds_of_checkpoints(case: str, exported: Export, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(exported(case).artifact), "--tokens", "12"]) == 0
    assert "passed" in capsys.readouterr().out


def test_a_context_that_the_export_stretched(made: Path, tmp_path: Path) -> None:
    export_checkpoint(made / "checkpoint", tmp_path / "long", yarn=4.0)
    assert main(["verify", str(tmp_path / "long"), "--tokens", "40"]) == 0


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


def _overlapping(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.layers.0.mlp.down_proj.weight"]
    entry["data_offsets"] = [at - 4 for at in entry["data_offsets"]]
    text = json.dumps(header).encode()
    path.unlink()  # the artifact's own link stays
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def _without_a_tensor(folder: Path) -> None:
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    (folder / "model.safetensors").unlink()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def _another_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt-unknown"}))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "gone": (_gone, "does not exist"),
    "overlapping": (_overlapping, "safetensors library can't read"),
    "without a tensor": (_without_a_tensor, "finds no 'model.norm.weight'"),
    "of another type": (_another_config, "transformers can't load"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=list(DAMAGES))
def test_without_it_nothing_passes(
    damage: Callable[[Path], None], words: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(made / "checkpoint")
    assert main(["verify", str(made / "artifact"), "--tokens", "12"]) == 1
    out = capsys.readouterr().out
    assert words in out and "NOT VERIFIED: transformers, the outside reference, did not run" in out


def test_a_model_too_large_for_a_copy_is_not_loaded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltart.verify import reference

    monkeypatch.setattr(reference, "MAX_PARAMETERS", 1000)
    with pytest.raises(ArtifactError, match="billion parameters"):
        ReferenceModel(load_manifest(made / "artifact"))
    with pytest.raises(ArtifactError, match="does not exist"):
        ReferenceModel(replace(load_manifest(made / "artifact"), checkpoint="/nowhere"))
