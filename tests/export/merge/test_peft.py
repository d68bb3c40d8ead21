"""Merged checkpoints against PEFT's own: adapters that it made, merged by its merge_and_unload, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

from deltart.export.merge import weights
from deltart.export.merge.pipeline import merge
from deltart.export.pipeline import export_checkpoint
from deltart.runtime.backends.inputs import text_inputs
from deltart.runtime.backends.ort import OrtBackend
from support.adapters import CONFIG, LINEARS, Base, tensors_of
from support.calibration import VOCAB

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft accelerate")
pytestmark = pytest.mark.slow

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
Model = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "r": 6},
    "dora": {"use_dora": True},
    "dora, rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.mlp.up_proj": 7, "q_proj": 2, r".*\.2\.linear_attn\..*": 3},
        "alpha_pattern": {"o_proj": 3, r".*\.2\.linear_attn\..*": 5, "^model.layers.3.self_attn.k_proj": 1.5},
    },
    "patterns of rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}},
    "saved whole": {"modules_to_save": ["lm_head", "norm", "input_layernorm"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "up_proj"]},
    "embedding, saved head": {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]},
    "all linears": {"target_modules": "all-linear"},
    "a pattern of names": {"target_modules": r".*\.[02]\.linear_attn\.(in_proj_\w+|out_proj)"},
    "few layers": {"layers_to_transform": [1, 3]},
    "biases": {"bias": "all"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "transposed": {"fan_in_fan_out": True},
}


def train(model: PreTrainedModel, folder: Path, dtype: torch.dtype, size: float = 0.05, **config: Any) -> Path:
    """An adapter in `folder` that PEFT made and saved as `dtype`, every trained value moved at random."""
    usual = {"r": 4, "lora_alpha": 8, "target_modules": list(LINEARS), "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**usual | config))
    generator = torch.Generator().manual_seed(7)
    for value in adapted.parameters():
        if value.requires_grad:
            value.data = (value.data + size * torch.randn(value.shape, generator=generator)).to(dtype)
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(
    base: Path, adapter: Path, dtype: torch.dtype, model: Model = AutoModelForCausalLM
) -> PreTrainedModel:
    loaded = model.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(loaded, adapter).merge_and_unload()


def assert_same(output: Path, expected: PreTrainedModel, base: Path) -> None:
    """Every tensor that transformers has is PEFT's to the bit; every other is the base's."""
    found, before, state = tensors_of(output), tensors_of(base), expected.state_dict()
    for name, value in found.items():
        wanted = state[name] if name in state else before[name]
        assert name in state or name.startswith("mtp.")
        assert value.dtype == wanted.dtype and torch.equal(value, wanted), name
    assert any(not torch.equal(found[name], before[name]) for name in found)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bit_for_bit(kind: str, dtype: str, base: Base, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base(dtype), dtype=TYPES[dtype])
    adapter = train(model, tmp_path / "adapter", torch.float32, **KINDS[kind])
    merge(base(dtype), adapter, tmp_path / "out")
    assert_same(tmp_path / "out", merged_by_peft(base(dtype), adapter, TYPES[dtype]), base(dtype))


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_of_every_type(stored: str, use_dora: bool, base: Base, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("BF16"), dtype=torch.bfloat16)
    adapter = train(model, tmp_path / "adapter", TYPES[stored], use_dora=use_dora)
    merge(base("BF16"), adapter, tmp_path / "out")
    assert_same(tmp_path / "out", merged_by_peft(base("BF16"), adapter, torch.bfloat16), base("BF16"))


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("kind", ["lora", "dora", "head", "embedding"])
def test_in_blocks(kind: str, dtype: str, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 3000)
    test_bit_for_bit(kind, dtype, base, tmp_path)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_model_that_sees(use_dora: bool, base: Base, tmp_path: Path) -> None:
    """Adapters of its text model and of its tower, by the names of that class."""
    model = AutoModelForImageTextToText.from_pretrained(base("sees"), dtype=torch.float32)
    targets = r".*\.(qkv|linear_fc[12]|q_proj|in_proj_\w+|out_proj|down_proj)"
    adapter = train(model, tmp_path / "adapter", torch.float32, target_modules=targets, use_dora=use_dora)
    record = merge(base("sees"), adapter, tmp_path / "out")
    expected = merged_by_peft(base("sees"), adapter, torch.float32, AutoModelForImageTextToText)
    assert_same(tmp_path / "out", expected, base("sees"))
    assert sum("visual" in name for name in record.weights) == 8


def test_trained_on_the_text_model_of_one_that_sees(base: Base, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base("sees"), dtype=torch.float32)
    adapter = train(model, tmp_path / "adapter", torch.float32, modules_to_save=["lm_head"])
    merge(base("sees"), adapter, tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    state = merged_by_peft(base("sees"), adapter, torch.float32).state_dict()
    for name, value in state.items():
        ours = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
        assert torch.equal(found[ours], value), name


@pytest.mark.parametrize("use_dora", [False, True])
def test_swifts_configs(use_dora: bool, base: Base, tmp_path: Path) -> None:
    """With the fields that ms-swift adds to PEFT's, and its patterns for models that see."""
    model = AutoModelForImageTextToText.from_pretrained(base("sees"), dtype=torch.float32)
    targets = r"^(model\.language_model(?=\.).*\.(in_proj_b|in_proj_a|in_proj_z|in_proj_qkv|out_proj|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj))$"  # noqa: E501
    adapter = train(
        model, tmp_path / "adapter", torch.bfloat16, r=8, lora_alpha=32, lora_dropout=0.05,
        target_modules=targets, use_dora=use_dora, use_rslora=False, modules_to_save=[],
    )  # fmt: skip
    expected = merged_by_peft(base("sees"), adapter, torch.float32, AutoModelForImageTextToText)
    config = json.loads((adapter / CONFIG).read_text())
    swift = {"lora_dtype": "bfloat16", "lorap_lr_ratio": None, "lorap_emb_lr": 1e-06}
    (adapter / CONFIG).write_text(json.dumps(config | swift, indent=2))
    (adapter / "additional_config.json").write_text(json.dumps({"lora_dtype": None, "lorap_lr_ratio": None}))
    record = merge(base("sees"), adapter, tmp_path / "out")
    assert_same(tmp_path / "out", expected, base("sees"))
    assert len(record.weights) == 31 and record.notes[0].endswith("left aside: lora_dtype, lorap_emb_lr")


@pytest.mark.parametrize("kind", ["lora", "dora", "saved whole"])
@pytest.mark.parametrize("name", ["tiny", "nano"])
def test_logits_of_what_is_exported(name: str, kind: str, base: Base, tmp_path: Path) -> None:
    """Weights are BF16 on both sides, activations float32. nano's logits go up to 17, and it is asked what it knows."""
    folder = NANO if name == "nano" else base("BF16")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    adapter = train(model, tmp_path / "adapter", torch.float32, size=0.01, **KINDS[kind])
    merge(folder, adapter, tmp_path / "merged")
    export_checkpoint(tmp_path / "merged", tmp_path / "artifact", mtp=False)
    expected = merged_by_peft(folder, adapter, torch.bfloat16).float().eval()
    ids = np.random.default_rng(0).integers(0, VOCAB, 16)
    if name == "nano":
        messages = [{"role": "user", "content": 'Type "planet" backwards'}]
        ids = np.array(AutoTokenizer.from_pretrained(NANO).apply_chat_template(messages, return_dict=False))
    ids = ids[None]
    places = np.arange(ids.shape[1])[None]
    inputs = text_inputs(ids, past_len=np.zeros(1, np.int32), n_tokens=None, logit_index=places)
    backend = OrtBackend(tmp_path / "artifact")
    (logits,) = backend.run("model", backend.new_state("model", 1, 64), inputs, ["logits"])
    with torch.no_grad():
        wanted = expected(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(logits - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())
