"""`deltart verify` of an artifact that sees: the tower block by block, and prompts with a picture and with a video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deltart.artifact import load_manifest
from deltart.cli import main
from deltart.verify import runners
from deltart.verify.shown import Marks, shown_media
from support.seeing import Seeing

BLOCK = "model.visual.blocks.1.mlp.linear_fc2.bias"


def report_of(artifact: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    main(["verify", str(artifact), "--tokens", "20", "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_planted_faults_are_named(
    seeing: Seeing, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in a block of the tower, one in the positions of its rows."""
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
        assert errors["image.positions", runner] == errors["video.positions", runner] == 0
    assert [line.partition(":")[0] for line in sound["shown"]] == ["image", "video of 4 frames"]  # type: ignore[attr-defined]
    page = (artifact / "report.html").read_text()
    assert page.count("<svg") == 6 and "by layer, video" in page

    # The artifact reads its weights from a copy with one bias changed; transformers reads the checkpoint.
    weights = artifact / "weights" / "model.safetensors"
    tensors = load_file(weights)
    tensors[BLOCK][::2] += 0.5  # the same for all would be lost in the next norm
    weights.unlink()
    save_file(tensors, weights, {"format": "pt"})
    monkeypatch.setattr(runners, "positions", lambda length, spans: np.tile(np.arange(length), (3, 1)))
    broken = report_of(artifact, capsys)
    assert not broken["passed"]
    wrong = {d["point"] for d in broken["differences"] if not d["passed"]}  # type: ignore[attr-defined]
    assert {"image.blocks.1.h", "video.blocks.1.h", "image.embeds", "image.logits"} <= wrong
    assert {"image.positions", "video.positions"} <= wrong
    assert not wrong & {"image.blocks.0.h", "video.embed.h", "layers.0.h", "logits"}


def test_an_artifact_without_a_tokenizer_is_shown_media_too(seeing: Seeing) -> None:
    """Without the text of a video's timestamps."""
    entry = load_manifest(seeing.artifact).vision
    assert entry is not None
    image, video = shown_media(entry, Marks(entry.tokens), np.arange(30))
    start, end = entry.tokens["vision_start"], entry.tokens["vision_end"]
    first, last = image.spans[0].start, image.spans[0].end
    assert image.ids.tolist() == [
        *range(12), start, *[entry.tokens["image_pad"]] * image.medium.tokens, end, *range(18, 30)
    ]  # fmt: skip
    assert (first, last) == (13, 13 + image.medium.tokens)
    assert len(video.spans) == video.medium.grid[0] == 2
    for span in video.spans:
        assert (video.ids[span.start - 1], video.ids[span.end]) == (start, end)
