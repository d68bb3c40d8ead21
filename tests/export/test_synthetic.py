"""Synthetic checkpoints: the vendor's names, dtypes and shapes; readable by safetensors; holes where sparse."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from deltart.errors import CheckpointError, OutputError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.spec import read_spec
from deltart.export.synthetic import write
from deltart.export.synthetic.write import synthesize


@pytest.mark.parametrize(
    ("preset", "tensor_map"),
    [
        ("qwen3.6-27b", "Qwen3.6-27B.weights.json"),
        ("qwen3.6-27b-fp8", "Qwen3.6-27B-FP8.weights.derived.json"),
        ("qwen3.6-35b-a3b", "Qwen3.6-35B-A3B.weights.json"),
        ("qwen3.6-35b-a3b-fp8", "Qwen3.6-35B-A3B-FP8.weights.derived.json.gz"),
    ],
)
def test_real_sizes_have_the_real_tensor_map(preset: str, tensor_map: str, real_files: Path, tmp_path: Path) -> None:
    synthesize(preset, tmp_path / "checkpoint", sparse=True)
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    raw = (real_files / tensor_map).read_bytes()
    expected = json.loads(gzip.decompress(raw) if tensor_map.endswith(".gz") else raw)
    assert {name: [info.dtype, list(info.shape)] for name, info in checkpoint.items()} == expected
    on_disk = sum(file.stat().st_blocks * 512 for file in (tmp_path / "checkpoint").iterdir())
    assert on_disk < 20_000_000 < 25e9 < sum(info.nbytes for info in checkpoint.values())


@pytest.mark.parametrize(("preset", "billions"), [("qwen3.5-0.8b", 0.85), ("qwen3.5-4b", 4.54), ("qwen3.5-9b", 9.41)])
def test_small_relatives_have_the_tensors_of_transformers_model(preset: str, billions: float, tmp_path: Path) -> None:
    """What transformers makes of the config, without the MTP head, which it has not."""
    synthesize(preset, tmp_path / "checkpoint", sparse=True)
    config = Qwen3_5Config.from_pretrained(tmp_path / "checkpoint")
    with torch.device("meta"):
        model = Qwen3_5ForConditionalGeneration(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    stored = {name: info.shape for name, info in Checkpoint(tmp_path / "checkpoint").items()}
    assert {name: shape for name, shape in stored.items() if not name.startswith("mtp.")} == expected
    assert sum(map(math.prod, expected.values())) / 1e9 == pytest.approx(billions, abs=0.01)
    assert sum(name.startswith("mtp.") for name in stored) == 15


def test_files_are_of_the_published_sizes(tmp_path: Path) -> None:
    """A file per layer, header and all; the 35B's were published in tenths of a megabyte."""
    synthesize("qwen3.6-27b-fp8", tmp_path / "27b", sparse=True)
    synthesize("qwen3.6-35b-a3b-fp8", tmp_path / "35b", sparse=True)

    def size(model: str, file: str) -> int:
        return (tmp_path / model / f"{file}.safetensors").stat().st_size

    assert [size("27b", f"layers-{n}") for n in (10, 11, 0)] == [383865472, 372313760, 383865448]
    assert [f"{size('35b', file) / 1e6:.1f}" for file in ("layers-0", "layers-3", "mtp")] == ["843.7", "837.1", "853.9"]
    assert len(list((tmp_path / "35b").glob("*.safetensors"))) == 42


def test_27b_fp8_is_accounted_for(tmp_path: Path) -> None:
    synthesize("qwen3.6-27b-fp8", tmp_path / "checkpoint", sparse=True)
    ledger = ledger_of(bind(read_spec(tmp_path / "checkpoint"), Checkpoint(tmp_path / "checkpoint")))
    assert len(ledger.bound) == 1273 and len(ledger.deferred) == 333
    assert all(name.startswith("model.visual.") for name in ledger.deferred)
    shared = [name for name, graphs in ledger.bound.items() if graphs == ["model", "mtp"]]
    assert sorted(shared) == ["lm_head.weight", "model.language_model.embed_tokens.weight"]


def test_tiny_reads_back_through_safetensors(tmp_path: Path) -> None:
    synthesize("tiny-fp8", tmp_path / "a", seed=1)
    synthesize("tiny-fp8", tmp_path / "b", seed=1)
    synthesize("tiny-fp8", tmp_path / "c", seed=2)
    first, again, other = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert first == again != other
    ours = Checkpoint(tmp_path / "a")
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(ours)
        for name in ours:
            theirs = file.get_tensor(name).float().numpy()
            np.testing.assert_array_equal(np.asarray(ours.read(name)).astype(np.float32), theirs)


def test_unknown_preset_and_used_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no preset 'huge'"):
        synthesize("huge", tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="already in use"):
        synthesize("tiny", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_random", interrupt)  # the header is on disk by then
    with pytest.raises(KeyboardInterrupt):
        synthesize("tiny", tmp_path / "deep" / "x")
    assert not list(tmp_path.iterdir())
