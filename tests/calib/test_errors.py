"""Broken inputs: each has its own error, and none leaves a checkpoint behind."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltart import staging
from deltart.calib.pipeline import calibrate
from deltart.errors import CalibrationError, CheckpointError, ConfigError, DeltaRTError, OutputError
from deltart.export.checkpoint import Checkpoint
from support.calibration import VOCAB

Made = Callable[[str], Path]


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    shutil.copytree(tiny, tmp_path / "broken")
    return tmp_path / "broken"


def refused(error: type[DeltaRTError], words: str, checkpoint: Path, output: Path, **arguments: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        calibrate(checkpoint, output, **{"method": "absmax", **arguments})
    assert caught.value.expected or caught.value.hint
    assert not output.exists() and not list(output.parent.glob(".*partial*"))


def overwrite(folder: Path, name: str, value: float) -> None:
    info = Checkpoint(folder)[name]
    with (folder / info.file).open("r+b") as file:
        file.seek(info.offset + 2 * 777)
        file.write((np.array([value], np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())


def test_already_quantized(calibrated: Made, tmp_path: Path) -> None:
    refused(CheckpointError, "already quantized", calibrated("absmax"), tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["absmax", "mse"])
def test_weights_not_finite(broken: Path, tmp_path: Path, value: float, method: str) -> None:
    overwrite(broken, "model.layers.2.mlp.up_proj.weight", value)
    words = "'model.layers.2.mlp.up_proj.weight' holds inf or NaN"
    refused(CheckpointError, words, broken, tmp_path / "out", method=method)


def test_activations_not_finite(broken: Path, text: Path, tmp_path: Path) -> None:
    overwrite(broken, "model.layers.1.mlp.down_proj.weight", np.nan)
    refused(CalibrationError, "'model.layers.1' .* inf or NaN", broken, tmp_path / "out", method="hessian", data=text)


def test_wrong_shapes(broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 384}))
    refused(CheckpointError, r"has shape \[256, 128\]", broken, tmp_path / "out")


def test_truncated(broken: Path, tmp_path: Path) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(CheckpointError, "the file at", broken, tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "gives 0 rows"),
        ("\n\n", "gives 0 rows"),
        ('{"ids": [1, 2, 3]}\n', "gives 1 rows"),
        ("not JSON\n", "line 1 is not valid JSON"),
        ("\x00\x01PAR1", "line 1 is not valid JSON"),
        ("[1, 2]\n", "line 1 has no usable field"),
        ('{"ids": [1, 2]}\n{"note": 1}\n', "line 2 has no usable field"),
        ('{"ids": [1, 2.5]}\n', "line 1 has no usable field"),
        (f'{{"ids": [1, {VOCAB}]}}\n' * 9, f"token {VOCAB}"),
    ],
)
def test_unusable_text(tiny: Path, tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "text.jsonl").write_text(lines)
    refused(CalibrationError, words, tiny, tmp_path / "out", method="hessian", data=tmp_path / "text.jsonl")


def test_absent_text(tiny: Path, tmp_path: Path) -> None:
    refused(CalibrationError, "does not exist", tiny, tmp_path / "out", data=tmp_path / "none.jsonl")
    for arguments in ({"method": "hessian"}, {"kv_cache": True}, {"activations": True}, {"budget": 0.1}):
        refused(CalibrationError, "no calibration text", tiny, tmp_path / "out", **arguments)


def test_text_without_tokenizer(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "hello"}\n')
    refused(DeltaRTError, "tokenizer", tiny, tmp_path / "out", data=tmp_path / "text.jsonl")


def test_disk_too_small(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 10**6)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    refused(CalibrationError, "GB free", tiny, tmp_path / "out")


def test_disk_full_half_way(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_copy_range", full)
    with pytest.raises(CalibrationError, match=r"(?s)No space left.*run it again to go on"):
        calibrate(tiny, tmp_path / "out", method="absmax")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    lines: list[str] = []
    calibrate(tiny, tmp_path / "out", method="absmax", log=lines.append)
    assert "32 done before" in lines[0] and not list(tmp_path.glob(".*partial*"))


def test_disk_full_from_the_start(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.os, "truncate", full)
    refused(CalibrationError, "No space left", tiny, tmp_path / "out")


def test_disk_full_in_torch(tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save reports a full disk by RuntimeError."""

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", full)
    refused(CalibrationError, "unexpected pos", tiny, tmp_path / "out", method="hessian", data=text)


def test_output_in_use(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OutputError, match="already in use"):
        calibrate(tiny, tmp_path, method="absmax")
    assert (tmp_path / "mine").read_text() == "precious"
    with pytest.raises(OutputError, match="is a file"):
        calibrate(tiny, tmp_path / "mine", method="absmax")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["gate"], "'gate', which matches no linear"),
        (["lm_head"], "'lm_head', which matches no linear"),
        (["q_proj"], "without .*k_proj.*v_proj"),
        (["up_proj", "down_proj"], "without .*gate_proj"),
        ([""], "'', which matches no linear"),
    ],
)
def test_impossible_modules(tiny: Path, tmp_path: Path, modules: list[str], words: str) -> None:
    refused(ConfigError, words, tiny, tmp_path / "out", modules=modules)


def test_impossible_keep(tiny: Path, tmp_path: Path) -> None:
    refused(ConfigError, "--keep names 'layers.9', which matches no linear", tiny, tmp_path / "out", keep=["layers.9"])
    refused(ConfigError, "--keep keeps .*q_proj without .*k_proj", tiny, tmp_path / "out", keep=["q_proj"])
    refused(ConfigError, "no module is left", tiny, tmp_path / "out", keep=["model", "mtp"])


def test_statistics_of_another_text(tiny: Path, text: Path, tmp_path: Path) -> None:
    arguments = dict(method="hessian", modules=["layers.0.mlp"], statistics=tmp_path / "kept")
    calibrate(tiny, tmp_path / "one", data=text, **arguments)  # type: ignore[arg-type]
    other = tmp_path / "other.jsonl"
    other.write_text(text.read_text() + '{"ids": [1, 2, 3]}\n')
    refused(CalibrationError, "something else than statistics", tiny, tmp_path / "two", data=other, **arguments)


def test_statistics_among_other_files(tiny: Path, text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "batches.pt").write_text("precious")
    refused(CalibrationError, "something else than statistics", tiny, tmp_path / "out", data=text, statistics=kept)
    assert [p.name for p in kept.iterdir()] == ["batches.pt"] and (kept / "batches.pt").read_text() == "precious"


def test_hidden_folder_of_somebody_else(tiny: Path, tmp_path: Path) -> None:
    """It has the name of unfinished work, but nothing of a calibration's in it."""
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "precious").touch()
    with pytest.raises(CalibrationError, match="no unfinished calibration"):
        calibrate(tiny, tmp_path / "out", method="absmax")
    assert (tmp_path / ".out.partial" / "precious").exists() and not (tmp_path / "out").exists()


def test_small_files_are_copied(calibrated: Made, tiny: Path) -> None:
    """So that an edit of the output's does not edit the original's."""
    output = calibrated("hessian")
    small = [p for p in output.iterdir() if p.suffix != ".safetensors" and (tiny / p.name).exists()]
    assert len(small) >= 2 and not any(os.path.samefile(p, tiny / p.name) for p in small)
