"""Checkpoints that trainers write: what the tensors say counts, and the logits are transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, PreTrainedModel

from deltart.cli import main
from deltart.errors import CheckpointError
from deltart.export.checkpoint import Checkpoint
from deltart.export.pipeline import account, export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.structure import settle
from support.eager import eager_logits
from support.saved import IDS, LINEARS, Config, State, flat, in_fp8, logits_of, model_of, nested, save, state_of, text

UNTIED, TIED = model_of(text()), model_of(text(tie_word_embeddings=True))
LOGITS = {False: logits_of(UNTIED), True: logits_of(TIED)}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

Saved = tuple[Config, State]


def _without(config: Config, *names: str) -> Config:
    return {name: value for name, value in config.items() if name not in names}


def _rope_beside(config: Config) -> Config:
    """As transformers 4 wrote it: the base and the factor beside rope_parameters."""
    beside = {name: config["rope_parameters"].pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    return config | beside


def _state(prefix: str = "model.", head: str = "lm_head.") -> State:
    return state_of(UNTIED, prefix, head)


VISUAL = {"model.visual.merger.norm.weight": torch.zeros(4)}
SAVED: dict[str, tuple[Saved, bool]] = {
    "a text model": ((flat(text()), _state()), False),
    "a text model under the wrapper's names": ((flat(text()), _state("model.language_model.")), False),
    "a wrapper": ((nested(text()), _state("model.language_model.")), False),
    "a wrapper under the text model's names": ((nested(text()), _state()), False),
    "the wrapper's older names": ((nested(text()), _state("language_model.model.", "language_model.lm_head.")), False),
    "a wrapper without a vision_config": ((_without(nested(text()), "vision_config"), _state()), False),
    "a text model with vision tensors": ((flat(text()), _state("model.language_model.") | VISUAL), False),
    "a wrapper's architecture over flat fields": (
        (flat(text()) | {"architectures": ["Qwen3_5ForConditionalGeneration"]}, _state()),
        False,
    ),
    "no architectures": ((_without(flat(text()), "architectures"), _state()), False),
    "null architectures": ((nested(text(), architectures=None), _state("model.language_model.")), False),
    "no model_type": ((_without(flat(text()), "model_type"), _state()), False),
    "a base model, tied": ((flat(text(tie_word_embeddings=True)), state_of(TIED, "")), True),
    "tied": ((flat(text(tie_word_embeddings=True)), state_of(TIED)), True),
    "tied in the wrapper alone": (
        (nested(text(), tie_word_embeddings=True), state_of(TIED, "model.language_model.")),
        True,
    ),
    "tied in the text_config alone": (
        (nested(text(tie_word_embeddings=True), tie_word_embeddings=False), state_of(TIED, "model.language_model.")),
        True,
    ),
    "tied with a copy": (
        (
            flat(text(tie_word_embeddings=True)),
            state_of(TIED) | {"lm_head.weight": TIED.state_dict()["model.embed_tokens.weight"].clone()},
        ),
        True,
    ),
    "tied with a head of its own": ((flat(text(tie_word_embeddings=True)), _state()), False),
    "an MTP head that is not there": ((flat(text(mtp_num_hidden_layers=1)), _state()), False),
    "layer types by interval": ((_without(flat(text(full_attention_interval=2)), "layer_types"), _state()), False),
    "null layer types": ((flat(text(full_attention_interval=2, layer_types=None)), _state()), False),
    "defaults of transformers left out": (
        (
            _without(flat(text()), "rms_norm_eps", "hidden_act", "linear_conv_kernel_dim", "tie_word_embeddings"),
            _state(),
        ),
        False,
    ),
    "rotary fields beside rope_parameters": ((_rope_beside(flat(text())), _state()), False),
}


@pytest.mark.parametrize("name", SAVED)
def test_logits_of_what_trainers_save(name: str, tmp_path: Path) -> None:
    (config, state), tied = SAVED[name]
    folder = save(tmp_path / "checkpoint", config, state)
    ledger = account(read_spec(folder), Checkpoint(folder))
    assert ledger.bound.keys() | ledger.deferred.keys() == state.keys()
    assert not ledger.bound.keys() & ledger.deferred.keys()
    np.testing.assert_allclose(eager_logits(folder, IDS, torch.float32), LOGITS[tied], atol=2e-4)


def test_what_transformers_itself_saves_of_the_wrapper(tmp_path: Path) -> None:
    """AutoModelForCausalLM drops the vision tower, keeps the wrapper's names and calls it a text model."""
    save(tmp_path / "whole", nested(text()), _state("model.language_model."))
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "tuned")
    account(read_spec(tmp_path / "tuned"), Checkpoint(tmp_path / "tuned"))
    np.testing.assert_allclose(eager_logits(tmp_path / "tuned", IDS, torch.float32), LOGITS[False], atol=2e-4)


def test_what_was_settled_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _without(flat(text(mtp_num_hidden_layers=1, tie_word_embeddings=True)), "rms_norm_eps")
    folder = save(tmp_path / "checkpoint", config, _state())
    settled = settle(read_spec(folder), Checkpoint(folder))
    notes, contradictions = " ".join(settled.notes), " ".join(settled.contradictions)
    assert "rms_norm_eps = 1e-06" in notes and "MTP head" in notes
    assert "lm_head.weight differs" in contradictions
    assert settle(settled.spec, Checkpoint(folder)).spec == settled.spec
    lines: list[str] = []
    export_checkpoint(folder, tmp_path / "artifact", log=lines.append)
    assert all(sentence in lines for sentence in settled)
    assert main(["inspect", str(folder)]) == 2, "config.json says what is not so"
    captured = capsys.readouterr()
    assert "rms_norm_eps = 1e-06" in captured.out and "lm_head.weight differs" in captured.err
    save(folder, config | {"tie_word_embeddings": False}, _state())
    assert main(["inspect", str(folder)]) == 0


def _quantized(**changes: Any) -> Config:
    return flat(text(quantization_config=FP8 | changes))


MORE = (*LINEARS, "in_proj_a", "in_proj_b")
KEPT = ["lm_head", "model.layers.0.linear_attn.in_proj_a", "model.layers.0.linear_attn.in_proj_b"]
# config, which linears are quantized, dtype of the scales
QUANTIZED: dict[str, tuple[Config, tuple[str, ...], torch.dtype]] = {
    "the vendor's list": (_quantized(modules_to_not_convert=KEPT), LINEARS, torch.bfloat16),
    "a null list": (_quantized(modules_to_not_convert=None), MORE, torch.float32),
    "no list": (_quantized(), MORE, torch.float32),
    "an empty list": (_quantized(modules_to_not_convert=[]), MORE, torch.float32),
    "ignored_layers": (_quantized(ignored_layers=["lm_head"]), MORE, torch.float32),
    "names of the wrapper": (
        _quantized(modules_to_not_convert=[f"model.language_model.{name}" for name in KEPT]),
        LINEARS,
        torch.float32,
    ),
    "regular expressions": (
        _quantized(modules_to_not_convert=["re:.*in_proj_[ab]$", "^lm_head$", "model\\.visual\\..*"]),
        LINEARS,
        torch.float32,
    ),
    "defaults left out": (flat(text(quantization_config={"quant_method": "fp8"})), MORE, torch.float32),
    "a list that forgets modules": (_quantized(modules_to_not_convert=["lm_head"]), LINEARS, torch.bfloat16),
    "attention alone": (_quantized(modules_to_not_convert=["mlp"]), ("q_proj", "k_proj", "v_proj"), torch.float32),
    "the head, too": (_quantized(), (*MORE, "lm_head"), torch.float32),
    "in the text_config": (
        _without(nested(text(quantization_config=FP8)), "quantization_config"),
        LINEARS,
        torch.float32,
    ),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_what_is_fp8_the_tensors_say(name: str, tmp_path: Path) -> None:
    config, leaves, scales = QUANTIZED[name]
    stored, plain = in_fp8(_state(), leaves, scales)
    folder = save(tmp_path / "checkpoint", config, stored)
    ledger = account(read_spec(folder), Checkpoint(folder))
    assert ledger.bound.keys() == stored.keys()
    reference = model_of(text())
    reference.load_state_dict(plain)
    np.testing.assert_allclose(eager_logits(folder, IDS, torch.float32), logits_of(reference), atol=2e-4)


def test_fp8_reads_as_transformers_reads_it(tmp_path: Path) -> None:
    stored, _ = in_fp8(_state(), MORE)
    folder = save(tmp_path / "checkpoint", _quantized(modules_to_not_convert=["lm_head"]), stored)
    plain = FineGrainedFP8Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=plain
    )
    np.testing.assert_allclose(eager_logits(folder, IDS, torch.float32), logits_of(theirs.eval()), atol=2e-4)


def test_fp8_of_a_tied_model(tmp_path: Path) -> None:
    stored, plain = in_fp8(state_of(TIED))
    config = flat(text(tie_word_embeddings=True, quantization_config=FP8 | {"modules_to_not_convert": KEPT[1:]}))
    folder = save(tmp_path / "checkpoint", config, stored)
    reference = model_of(text(tie_word_embeddings=True))
    reference.load_state_dict(plain, strict=False)
    assert account(read_spec(folder), Checkpoint(folder)).bound.keys() == stored.keys()
    np.testing.assert_allclose(eager_logits(folder, IDS, torch.float32), logits_of(reference), atol=2e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_export_takes_what_calibrate_writes(tied: bool, tmp_path: Path) -> None:
    model: PreTrainedModel = TIED if tied else UNTIED
    config = flat(text(tie_word_embeddings=tied, mtp_num_hidden_layers=1))
    folder = save(tmp_path / "plain", config, state_of(model, "model.language_model."))
    assert main(["calibrate", str(folder), "-o", str(tmp_path / "fp8"), "--method", "absmax"]) == 0
    written = Checkpoint(tmp_path / "fp8")
    account(read_spec(tmp_path / "fp8"), written)
    assert any(info.dtype == "F8_E4M3" for info in written.values())
    ours = eager_logits(tmp_path / "fp8", IDS, torch.float32)
    assert np.corrcoef(ours.ravel(), LOGITS[tied].ravel())[0, 1] > 0.99


def _renamed(prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in _state().items()}


def _lora(state: State) -> State:
    name = "model.layers.0.mlp.up_proj"
    more = {f"{name}.lora_A.default.weight": torch.zeros(4, 128), f"{name}.base_layer.weight": state[f"{name}.weight"]}
    return {key: value for key, value in state.items() if key != f"{name}.weight"} | more


PARTLY_MTP = {"mtp.fc.weight": torch.zeros(128, 256)}
ODD_NAMES: dict[str, tuple[Config, State, list[str]]] = {
    "a PEFT model": (flat(text()), _renamed("base_model.model."), ["base_model.model.", "PEFT", "merge"]),
    "DDP": (flat(text()), _renamed("module."), ["'module.'", "DistributedDataParallel", "model.module"]),
    "a compiled model": (flat(text()), _renamed("_orig_mod."), ["_orig_mod.", "torch.compile"]),
    "FSDP": (flat(text()), _renamed("_fsdp_wrapped_module."), ["_fsdp_wrapped_module.", "FullyShardedDataParallel"]),
    "an adapter not merged": (flat(text()), _lora(_state()), ["up_proj.", "LoRA adapter", "merge_and_unload"]),
    "two text models": (
        flat(text()),
        _state() | _state("model.language_model."),
        ["model.language_model.", "one text"],
    ),
    "two heads": (
        flat(text()),
        _state() | {"language_model.lm_head.weight": torch.zeros(300, 128)},
        ["language_model.lm_head.weight", "one output head"],
    ),
    "another model's names": (flat(text()), _state("transformer."), ["transformer.embed_tokens.weight", "rename"]),
    "part of an MTP head": (flat(text(mtp_num_hidden_layers=1)), _state() | PARTLY_MTP, ["mtp.", "--no-mtp"]),
    "an MTP head not configured": (flat(text()), _state() | PARTLY_MTP, ["mtp.fc.weight", "used by no graph"]),
    "no head": (
        flat(text()),
        {name: value for name, value in _state().items() if name != "lm_head.weight"},
        ["lm_head.weight", "missing", "tie_word_embeddings"],
    ),
    "a layer too many": (
        flat(text(num_hidden_layers=1, layer_types=["linear_attention"])),
        _state(),
        ["layers.1.", "used by no graph"],
    ),
    "FP8 without a quantization_config": (
        flat(text()),
        in_fp8(_state())[0],
        ["F8_E4M3", "quantization_config is missing"],
    ),
    "FP8 with a list that names it": (
        _quantized(modules_to_not_convert=["model.layers.0.mlp.up_proj"]),
        in_fp8(_state())[0],
        ["up_proj", "modules_to_not_convert"],
    ),
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_refused_by_name(name: str, tmp_path: Path) -> None:
    config, state, words = ODD_NAMES[name]
    folder = save(tmp_path / "checkpoint", config, state)
    with pytest.raises(CheckpointError) as caught:
        account(read_spec(folder), Checkpoint(folder))
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value), word


def _write(folder: Path, *names: str) -> None:
    for name in names:
        save_file({"x": torch.zeros(1)}, folder / name) if name.endswith(".safetensors") else (
            folder / name
        ).write_text("{}")


def _index(folder: Path, file: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))


SHARD = "model-{}-of-00002.safetensors"
FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda f: None, ["holds no weights"]),
    "an adapter": (lambda f: _write(f, "adapter_config.json", "adapter_model.safetensors"), ["LoRA adapter", "merge"]),
    "shards without an index": (
        lambda f: _write(f, SHARD.format("00001"), SHARD.format("00002")),
        [SHARD.format("00001"), "without model.safetensors.index.json", "copy model.safetensors.index.json"],
    ),
    "some shards without an index": (
        lambda f: _write(f, SHARD.format("00002")),
        ["finish the download", SHARD.format("00001")],
    ),
    "another name": (lambda f: _write(f, "consolidated.safetensors"), ["consolidated.safetensors", "rename"]),
    "several other names": (lambda f: _write(f, "a.safetensors", "b.safetensors"), ["a.safetensors, b.safetensors"]),
    "pickles": (lambda f: _write(f, "pytorch_model.bin", "optimizer.pt"), ["pytorch_model.bin", "save_pretrained"]),
    "a shard whose name no file can have": (
        lambda f: _index(f, "x" * 300),
        ["names shard 'xxx", "does not exist", "finish the download"],
    ),
    "GGUF": (lambda f: _write(f, "model-q4.gguf"), ["model-q4.gguf", "original"]),
    "a training run's folder": (
        lambda f: ((f / "checkpoint-500").mkdir(), _write(f / "checkpoint-500", "config.json")),
        ["checkpoint-500"],
    ),
    "a new file beside an old index": (
        lambda f: (_write(f, "model.safetensors", SHARD.format("00001")), _index(f, SHARD.format("00001"))),
        ["both model.safetensors and model.safetensors.index.json", SHARD.format("00001"), "delete"],
    ),
    "an index of a missing file": (
        lambda f: _index(f, SHARD.format("00001")),
        ["does not exist", "finish the download"],
    ),
    "an index of nothing": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
        ["names no tensors"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_message_says_what_was_found_and_what_to_do(name: str, tmp_path: Path) -> None:
    make, words = FILES[name]
    make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(tmp_path)
    for word in words:
        assert word in str(caught.value), word


def test_an_index_that_names_the_single_file_is_no_second_set(tmp_path: Path) -> None:
    _write(tmp_path, "model.safetensors")
    _index(tmp_path, "model.safetensors")
    assert [*Checkpoint(tmp_path)] == ["x"]
