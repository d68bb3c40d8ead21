"""Experts packed one by one in int4 against transformers' fused ones with the unpacked weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from e2e.test_parity import TOLERANCE, call, random_ids
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from deltart.artifact import load_manifest
from deltart.errors import BuildError, CheckpointError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.ledger import ledger_of
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import synthesize, write_checkpoint
from deltart.export.targets import lower_artifact
from deltart.runtime.backends.ort import OrtBackend
from deltart.verify.reference import ReferenceModel
from support.cases import SPARSE_CASES, VOCAB, Exported
from support.packed import Packer, in_int4, scheme, words_of
from support.reference import transformers_model
from support.saved import State

GROUP, COUNT = 32, 12
LEAVES = ("down_proj", "gate_proj", "up_proj", "q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z")
IGNORED = ["lm_head", "re:.*in_proj_[ab]$", "re:.*out_proj", "re:.*shared_expert_gate", "re:.*mlp.gate$", "re:mtp.*"]
EXPERT = "model.layers.1.mlp.experts.4"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Four layers of twelve experts, as transformers fuses them, in bfloat16."""
    folder = tmp_path_factory.mktemp("plain")
    sizes, _ = SPARSE_CASES["moe-fp8"]
    config = causal_lm(text_config(**sizes, vocab=VOCAB, max_position=2048, mtp=False))
    write_checkpoint(config, folder, dtype="BF16")
    return Exported(config, folder, folder)


def one_by_one(tensors: State) -> State:
    """The fused experts as tensors of their own."""
    found = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if leaf not in ("gate_up_proj", "down_proj") or not owner.endswith(".experts"):
            found[name] = tensor
            continue
        for number, matrix in enumerate(tensor):
            parts = {"down_proj": matrix} if leaf == "down_proj" else dict(
                zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True))  # fmt: skip
            found |= {f"{owner}.{number}.{part}.weight": value.contiguous() for part, value in parts.items()}
    return found


def fused(weights: State) -> State:
    """The inverse."""
    found = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for owner in {name.rpartition(".experts.")[0] for name in weights if ".experts." in name}:
        gate, up, down = (
            torch.stack([weights[f"{owner}.experts.{n}.{leaf}.weight"] for n in range(COUNT)])
            for leaf in ("gate_proj", "up_proj", "down_proj")
        )
        found[f"{owner}.experts.down_proj"] = down
        found[f"{owner}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
    return found


def packed(
    plain: Exported, folder: Path, pack: Packer = words_of, change: Callable[[State], object] = len
) -> tuple[Path, PreTrainedModel]:
    """A checkpoint with scales in bfloat16, and transformers' model of what it stands for."""
    state = {name: t.float() for name, t in one_by_one(load_file(plain.checkpoint / "model.safetensors")).items()}
    stored, stands_for = in_int4(state, LEAVES, GROUP, torch.bfloat16, pack)
    stored = {name: t.bfloat16() if t.dtype == torch.float32 else t for name, t in stored.items()}
    change(stored)
    folder.mkdir()
    config = json.loads((plain.checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": scheme(GROUP, IGNORED)}))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    model = transformers_model(plain)
    missing, unexpected = model.load_state_dict(fused(stands_for), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return folder, model


def agrees(artifact: Path, model: PreTrainedModel) -> None:
    for target in ("ort", "portable"):
        backend = OrtBackend(artifact, target)
        for length in (1, 9):
            ids = random_ids(2, length)
            logits, _ = call(backend, backend.new_state("model", 2, 16), ids, np.zeros(2, np.int64))
            with torch.no_grad():
                expected = model(torch.from_numpy(ids)).logits.numpy()
            assert np.abs(logits - expected).max() <= TOLERANCE


def test_logits_equal_transformers_and_no_byte_is_copied(plain: Exported, tmp_path: Path) -> None:
    checkpoint, model = packed(plain, tmp_path / "in")
    export_checkpoint(checkpoint, tmp_path / "out")
    agrees(tmp_path / "out", model)
    entries = load_manifest(tmp_path / "out").tensors
    shapes = {name for name in Checkpoint(checkpoint) if name.endswith(".weight_shape")}
    assert {name for name, entry in entries.items() if entry.fate == "deferred"} == shapes
    assert entries["model.layers.0.mlp.experts.runs.0.weight_groups"].dtype == "U8"
    weights = tmp_path / "out" / "weights" / "model.safetensors"
    assert weights.stat().st_ino == (checkpoint / "model.safetensors").stat().st_ino
    with pytest.raises(BuildError, match="Int4MoeExperts, which has no kernel"):
        lower_artifact(tmp_path / "out", "native")


@pytest.mark.slow
def test_the_reference_of_verify_reads_them_too(plain: Exported, tmp_path: Path) -> None:
    checkpoint, model = packed(plain, tmp_path / "in")
    export_checkpoint(checkpoint, tmp_path / "out")
    ids = random_ids(1, 9)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[0].numpy()
    found = ReferenceModel(load_manifest(tmp_path / "out")).points(ids[0])["logits"]
    assert np.abs(found - expected).max() <= TOLERANCE


@pytest.mark.slow
def test_what_compressed_tensors_packs(plain: Exported, tmp_path: Path) -> None:
    helpers = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="pip install compressed-tensors: it packs"
    )
    checkpoint, model = packed(plain, tmp_path / "in", lambda integers, scale: helpers.pack_to_int32(integers, 4))
    export_checkpoint(checkpoint, tmp_path / "out")
    agrees(tmp_path / "out", model)


def cut_scales(tensors: State) -> None:
    name = f"{EXPERT}.up_proj.weight_scale"
    tensors[name] = tensors[name][:, :2].contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(f"{EXPERT}.up_proj.weight_packed"), f"'{EXPERT}.up_proj.weight_packed' is missing"),
        (lambda s: s.pop(f"{EXPERT}.up_proj.weight_scale"), f"'{EXPERT}.up_proj.weight_scale' is missing"),
        (lambda s: s.pop(f"{EXPERT}.up_proj.weight_shape"), f"'{EXPERT}.up_proj.weight_shape' is missing"),
        (lambda s: s[f"{EXPERT}.up_proj.weight_shape"].add_(1), f"'{EXPERT}.up_proj.weight_shape' says [129, 257]"),
        (lambda s: s.update({f"{EXPERT}.up_proj.weight_zero_point": torch.zeros(1)}), "used by no graph"),
        (cut_scales, f"'{EXPERT}' is not in one piece"),
    ],
)
def test_broken_experts_are_named(
    change: Callable[[State], object], said: str, plain: Exported, tmp_path: Path
) -> None:
    folder, _ = packed(plain, tmp_path / "in", change=change)
    with pytest.raises(CheckpointError) as refused:
        ledger_of(bind(read_spec(folder), Checkpoint(folder)))
    assert said in str(refused.value)


@pytest.mark.slow
def test_the_35b_is_accounted_for(tmp_path: Path) -> None:
    synthesize("qwen3.6-35b-a3b-int4", tmp_path / "35b", sparse=True)
    checkpoint = Checkpoint(tmp_path / "35b")
    ledger_of(bind(read_spec(tmp_path / "35b"), checkpoint))
    assert sum(info.nbytes for info in checkpoint.values()) / 1e9 == pytest.approx(21, rel=0.1)
