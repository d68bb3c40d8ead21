"""`deltart verify` of an artifact that sees: the tower block by block, and prompts with a picture and with a video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from deltart.cli import main
from support.seeing import Seeing

BLOCK = "model.visual.blocks.1.mlp.linear_fc2.bias"


def report_of(artifact: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    main(["verify", str(artifact), "--tokens", "20", "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_planted_fault_is_named_by_its_block(
    seeing: Seeing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = shutil.copytree(seeing.artifact, tmp_path / "artifact")
    sound = report_of(artifact, capsys)
    assert sound["passed"]
    errors = {(d["point"], d["runner"]): d["relative_rms"] for d in sound["differences"]}  # type: ignore[attr-defined]
    tower = [
        f"{name}.{point}" for name in ("image", "video") for point in ("embed.h", "blocks.0.h", "blocks.1.h", "embeds")
    ]
    whole = [f"{name}.{point}" for name in ("image", "video") for point in ("hidden", "logits")]
    for runner in ("portable", "ort"):
        assert all(errors[point, runner] < 1e-5 for point in [*tower, *whole])

    # The artifact reads its weights from a copy with one bias changed; transformers reads the checkpoint.
    weights = artifact / "weights" / "model.safetensors"
    tensors = load_file(weights)
    tensors[BLOCK][::2] += 0.5  # the same for all would be lost in the next norm
    weights.unlink()
    save_file(tensors, weights, {"format": "pt"})
    broken = report_of(artifact, capsys)
    assert not broken["passed"]
    wrong = {d["point"] for d in broken["differences"] if not d["passed"]}  # type: ignore[attr-defined]
    assert {"image.blocks.1.h", "video.blocks.1.h", "image.embeds", "image.logits"} <= wrong
    assert not wrong & {"image.blocks.0.h", "video.embed.h", "layers.0.h", "logits"}
