"""Sparse checkpoints: fused BF16 experts become the vendor's files of one expert after the other."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FineGrainedFP8Config, Qwen3_5MoeForCausalLM

from deltart.calib import layout
from deltart.calib.experts import unfused
from deltart.calib.pipeline import calibrate
from deltart.calib.selection import candidates, select
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic import write as synthetic
from deltart.export.synthetic.presets import Experts
from deltart.export.synthetic.write import synthesize
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.calibration import VOCAB, load, write_text, write_tiny
from support.cases import stored_weights

EXPERTS = Experts(12, 3, 128)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 checkpoint in shards that part the two tensors of a layer's experts."""
    folder = tmp_path_factory.mktemp("sparse") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "SHARD_BYTES", 900_000)
        write_tiny(folder, experts=EXPERTS)
    return folder


@pytest.fixture(scope="module")
def quantized(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "out"
    calibrate(sparse, folder, method="absmax")
    return folder


def test_35b_equals_the_vendors_fp8_release(real_files: Path, tmp_path: Path) -> None:
    synthesize("qwen3.6-35b-a3b", tmp_path / "35b", sparse=True)
    tensors = Checkpoint(tmp_path / "35b")
    selection = select(candidates(read_spec(tensors.folder), tensors), unfused(tensors), None)
    assert len(selection.modules) == 41 * 768 + 250 + 7 and not selection.kept  # 7 of the MTP layer
    planned = {}
    for file in layout.plan_files(tensors, selection, "BF16"):
        infos = file.tensors.values() if not file.linked else (i for i in tensors.values() if i.file == file.name)
        planned.update({info.name: [info.dtype, list(info.shape)] for info in infos})
    raw = (real_files / "Qwen3.6-35B-A3B-FP8.weights.derived.json.gz").read_bytes()
    assert planned == json.loads(gzip.decompress(raw))
    skipped = layout.output_config(tensors, selection)["quantization_config"]["modules_to_not_convert"]
    assert "model.language_model.layers.0.mlp.gate" in skipped and not any(".experts" in name for name in skipped)


def test_files_are_as_the_library_writes_them(sparse: Path, quantized: Path, tmp_path: Path) -> None:
    before, after = Checkpoint(sparse), Checkpoint(quantized)
    assert len({before[f"model.layers.0.mlp.experts.{part}_proj"].file for part in ("gate_up", "down")}) == 2
    assert [file.name for file in before.files] == [file.name for file in after.files]
    for file in after.files:
        save_file(load_file(quantized / file.name), tmp_path / file.name, {"format": "pt"})
        assert (tmp_path / file.name).read_bytes() == (quantized / file.name).read_bytes()
    assert len(after.regions) == 2 * 5  # a layer's experts are one piece
    ledger_of(bind(read_spec(quantized), after))


def test_values_are_those_of_the_fused_experts(sparse: Path, quantized: Path) -> None:
    original, stored = stored_weights(sparse), stored_weights(quantized)
    assert original.keys() == stored.keys()
    for name, weight in original.items():
        if "experts" not in name or "shared" in name:
            continue
        step = weight.abs().amax() / 448  # of the largest block; E4M3 keeps 4 significant bits
        assert ((stored[name] - weight).abs() <= weight.abs() / 16 * 1.01 + step).all(), name


def test_transformers_loads_the_same_weights(quantized: Path) -> None:
    """Through its own FP8 path, which fuses the experts and dequantizes to BF16 on a CPU."""
    config = FineGrainedFP8Config(dequantize=True)
    loaded = Qwen3_5MoeForCausalLM.from_pretrained(quantized, dtype=torch.bfloat16, quantization_config=config)
    expected = {n: w for n, w in stored_weights(quantized).items() if not n.startswith("mtp.")}
    found = loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight.to(torch.bfloat16)) for name, weight in expected.items())


def logits_of(folder: Path, artifact: Path) -> tuple[np.ndarray, np.ndarray]:
    """The exported graph's and transformers'."""
    export_checkpoint(folder, artifact, mtp=False)
    backend = OrtBackend(artifact)
    row = np.random.default_rng(1).integers(0, VOCAB, (1, 20))
    inputs = text_inputs(row, np.zeros(1, np.int32), logit_index=np.arange(20)[None])
    (logits,) = backend.run("model", backend.new_state("model", 1, 32), inputs, ["logits"])
    with torch.no_grad():
        return logits, load(folder)(torch.from_numpy(row)).logits.numpy()


@pytest.mark.slow
def test_with_text_and_experts_kept(sparse: Path, tmp_path: Path) -> None:
    text, out = write_text(tmp_path / "text.jsonl", rows=16), tmp_path / "out"
    report = calibrate(sparse, out, method="hessian", data=text, keep=["layers.1.mlp.experts"])
    after = Checkpoint(out)
    assert after["model.layers.1.mlp.experts.gate_up_proj"].dtype == "BF16" and len(after.regions) == 2 * 4
    skipped = json.loads((out / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
    assert "model.layers.1.mlp.experts" in skipped
    told = report.weights["model.layers.0.mlp.experts.up_proj"]
    assert told.size == EXPERTS.count * 128 * 128 and not told.output
    assert report.weights["model.layers.0.mlp.shared_expert.up_proj"].output.keys() == {
        "absmax",
        "mse",
        "hessian",
        "chosen",
    }
    assert 0 < report.agreement["hessian"].kl < 0.1 and report.agreement["hessian"].top1 > 0.5
    ours, theirs = logits_of(out, tmp_path / "artifact")
    assert np.abs(ours - theirs).max() <= 1e-4
