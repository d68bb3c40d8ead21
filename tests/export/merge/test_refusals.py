"""Adapters, bases and outputs that are refused: by name, before anything is written, with what to do."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltart import staging
from deltart.errors import CheckpointError, ConfigError, DeltaRTError, MergeError
from deltart.export.merge.pipeline import merge
from deltart.export.synthetic.presets import Experts, causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from support.adapters import CONFIG, PREFIX, WEIGHTS, Base, edit, linears, write_adapter
from support.calibration import SIZES, VOCAB, write_tiny

Change = Callable[[Path], None]
Q, UP = "model.layers.3.self_attn.q_proj", "model.layers.0.mlp.up_proj"
QKV = "model.layers.0.linear_attn.in_proj_qkv"
A, B = (f"{PREFIX}{UP}.lora_{part}.weight" for part in "AB")


def refused(error: type[DeltaRTError], words: list[str], base: Path, adapter: Path, output: Path) -> None:
    with pytest.raises(error) as caught:
        merge(base, adapter, output)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not output.exists() and not list(output.parent.glob(".*partial*"))


def config(**fields: Any) -> Change:
    return lambda adapter: edit(adapter, **fields)


def tensor(name: str, value: torch.Tensor | None) -> Change:
    """The tensor of that name, or none."""
    return lambda adapter: edit(adapter, {name: value})


def named(name: str, *shape: int) -> Change:
    """A tensor of that name, behind PEFT's prefix."""
    return tensor(PREFIX + name, torch.zeros(shape))


def pair(module: str, rows: int, columns: int, rank: int = 4) -> Change:
    """LoRA of one module more."""
    a, b = torch.zeros(rank, columns), torch.zeros(rows, rank)
    return lambda adapter: edit(adapter, {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b})


def as_pickle(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


def a_training_folder(adapter: Path) -> None:
    (adapter / "checkpoint-100").mkdir()
    for name in (CONFIG, WEIGHTS):
        (adapter / name).rename(adapter / "checkpoint-100" / name)


def truncated(adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-40])


def without_config(adapter: Path) -> None:
    (adapter / CONFIG).unlink()


def twice(adapter: Path) -> None:
    pair(UP.replace("model.", "model.language_model."), 256, 128)(adapter)


def dora_of_the_embedding(adapter: Path) -> None:
    embedding = {"A": torch.zeros(4, VOCAB), "B": torch.zeros(128, 4)}
    edit(
        adapter,
        {f"{PREFIX}model.embed_tokens.lora_embedding_{part}": value for part, value in embedding.items()}
        | {f"{PREFIX}{module}.lora_magnitude_vector": torch.ones(rows) for module, rows in ((UP, 256), (Q, 512))},
        use_dora=True,
    )


REFUSED: dict[str, tuple[Change, list[str]]] = {
    "another method": (config(peft_type="ADALORA"), ["peft_type is 'ADALORA'", "expected: 'LORA'"]),
    "prompt tuning": (config(peft_type="PROMPT_TUNING"), ["'PROMPT_TUNING'"]),
    "lora_bias": (config(lora_bias=True), ["lora_bias is True", "merge it with PEFT"]),
    "parameters": (config(target_parameters=["mlp.experts.gate_up_proj"]), ["target_parameters", "merge_and_unload()"]),
    "replicated layers": (config(layer_replication=[[0, 4], [2, 6]]), ["layer_replication is [[0, 4], [2, 6]]"]),
    "tokens": (config(trainable_token_indices=[1, 2]), ["trainable_token_indices"]),
    "invocation": (config(alora_invocation_tokens=[1]), ["alora_invocation_tokens", "no merged weight can"]),
    "QALoRA": (config(use_qalora=True), ["use_qalora"]),
    "PiSSA": (
        config(init_lora_weights="pissa_niter_4"),
        ["'pissa_niter_4', which changed the base", "save_pretrained"],
    ),
    "LoRA-GA": (config(init_lora_weights="lora_ga"), ["init_lora_weights"]),
    "another rank": (config(r=8), [f"'{A}' has shape [4, 128]", "expected: [8, 128]", "rank_pattern"]),
    "a pattern's rank": (config(rank_pattern={"q_proj": 3}), [f"{Q}.lora_A", "expected: [3, 128]"]),
    "DoRA without magnitudes": (config(use_dora=True), ["has no magnitudes", f"'{UP}.lora_magnitude_vector'"]),
    "magnitudes without DoRA": (named(f"{UP}.lora_magnitude_vector", 256), ["use_dora is false"]),
    "no A": (tensor(A, None), [f"no lora_A of '{UP}'"]),
    "no B": (tensor(B, None), [f"no lora_B of '{UP}'"]),
    "an unknown module": (
        pair("model.layers.1.mlp.upp_proj", 8, 8),
        ["has no 'model.layers.1.mlp.upp_proj.weight'", "such as 'model.layers.1.mlp.up_proj.weight'"],
    ),
    "a deeper base": (
        pair("model.layers.9.mlp.up_proj", 256, 128),
        ["layers.9", "as the base has 4 layers", "family/base"],
    ),
    "fused linears": (pair("model.layers.3.self_attn.qkv_proj", 8, 8), ["qkv_proj", "trained on fused linears"]),
    "experts": (pair("model.layers.0.mlp.experts.3.up_proj", 8, 8), ["experts.3.up_proj", "merged by PEFT"]),
    "experts, fused": (pair("model.layers.0.mlp.experts", 8, 8), ["mlp.experts'", "merged by PEFT"]),
    "a parameter": (pair("model.layers.0.mlp.experts.base_layer", 8, 8), ["belongs to a parameter", "merged by PEFT"]),
    "a convolution": (pair("model.layers.0.linear_attn.conv1d", 512, 4), ["conv1d", "[512, 1, 4]", "matrices"]),
    "a vector": (pair("model.layers.0.input_layernorm", 128, 1), ["input_layernorm", "[128]", "matrices"]),
    "another base's shapes": (
        pair(QKV, 768, 128),
        [f"{QKV}.lora_B.weight' has shape [768, 4]", "is [512, 128]", "family/base"],
    ),
    "a partitioned tensor": (tensor(A, torch.zeros(0)), ["[0]", "ZeRO-3"]),
    "integers": (tensor(A, torch.zeros(4, 128, dtype=torch.int8)), ["stored as I8", "F32"]),
    "one tensor by two names": (twice, [f"'{UP}.weight' twice", "language_model"]),
    "one whole tensor by two names": (
        lambda adapter: edit(
            adapter, {f"{PREFIX}lm_head.{name}": torch.zeros(VOCAB, 128) for name in ("weight", "base_layer.weight")}
        ),
        ["both replace 'lm_head.weight'"],
    ),
    "the adapter's name": (
        named(f"{QKV}.lora_A.default.weight", 4, 128),
        ["has the name 'default' in it", "save_pretrained"],
    ),
    "a bias of LoRA": (named(f"{QKV}.lora_B.bias", 512), [".lora_B.bias' is a bias"]),
    "another LoRA": (named(f"{QKV}.lora_diag", 4), ["lora_diag' is of no LoRA"]),
    "no prefix": (
        tensor("model.norm.weight", torch.zeros(128)),
        ["holds 'model.norm.weight'", "begin with 'base_model.model.'"],
    ),
    "a classifier": (named("score.weight", 2, 128), ["changes 'score.weight'", "has no"]),
    "a larger vocabulary": (
        named("lm_head.weight", VOCAB + 8, 128),
        ["lm_head.weight' has shape [328, 128]", "resized"],
    ),
    "a module that was not saved": (config(modules_to_save=["lm_head"]), ["modules_to_save names 'lm_head'"]),
    "no number": (tensor(A, torch.full((4, 128), torch.nan)), [f"'{UP}.weight' has values", "no numbers"]),
    "a pickle": (as_pickle, ["adapter_model.bin, a pickle", "save_pretrained(new)"]),
    "no weights": (lambda adapter: (adapter / WEIGHTS).unlink(), [f"holds no {WEIGHTS}"]),
    "no config": (without_config, [f"holds no {CONFIG}"]),
    "a trainer's folder": (a_training_folder, [f"holds no {CONFIG}", "checkpoint-100"]),
    "DoRA of the embedding": (dora_of_the_embedding, ["DoRA of the embedding 'model.embed_tokens'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters(case: str, base: Base, tmp_path: Path) -> None:
    change, words = REFUSED[case]
    adapter = write_adapter(tmp_path / "adapter", base("BF16"), [UP, Q])
    change(adapter)
    refused(MergeError, words, base("BF16"), adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (truncated, CheckpointError, [WEIGHTS, "truncated"]),
        (lambda adapter: (adapter / CONFIG).write_text("{"), ConfigError, ["not valid JSON"]),
        (config(r=0), ConfigError, ["field 'r' is 0"]),
        (config(r=None), ConfigError, ["field 'r' is missing"]),
        (config(lora_alpha="8"), ConfigError, ["field 'lora_alpha' is '8'"]),
        (config(use_rslora="yes"), ConfigError, ["field 'use_rslora' is 'yes'"]),
        (config(rank_pattern={"q_proj": 0}), ConfigError, ["rank_pattern: field 'q_proj' is 0"]),
        (config(alpha_pattern={"q_(proj": 1}), ConfigError, ["alpha_pattern has 'q_(proj'", "a pattern"]),
        (config(modules_to_save=[1]), ConfigError, ["modules_to_save"]),
    ],
)
def test_broken_files(change: Change, error: type[DeltaRTError], words: list[str], base: Base, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base("BF16"), [UP, Q])
    change(adapter)
    refused(error, words, base("BF16"), adapter, tmp_path / "out")


def test_no_tensors(base: Base, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base("BF16"), [])
    refused(MergeError, ["holds no tensors"], base("BF16"), adapter, tmp_path / "out")


def test_base_and_adapter_in_the_wrong_order(base: Base, adapter: Path, tmp_path: Path) -> None:
    refused(MergeError, ["the order is BASE ADAPTER"], base("BF16"), base("F32"), tmp_path / "out")
    refused(ConfigError, ["config.json"], adapter, base("BF16"), tmp_path / "out")


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_tied_targets(module: str, base: Base, tmp_path: Path) -> None:
    words = [f"the adapter changes '{module}", "ties its output head to its embedding", "untied"]
    untied = write_adapter(tmp_path / "lora", base("BF16"), [module])
    refused(MergeError, words, base("tied"), untied, tmp_path / "out")
    whole = {f"{module}.weight": torch.zeros(VOCAB, 128)}
    saved = write_adapter(tmp_path / "whole", base("tied"), [UP], whole=whole)
    refused(MergeError, words, base("tied"), saved, tmp_path / "out")


def test_another_base(base: Base, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", hidden=256)
    adapter = write_adapter(tmp_path / "adapter", other, linears(other))
    words = ["has shape", "another base", "it was trained on 'family/base'"]
    refused(MergeError, words, base("BF16"), adapter, tmp_path / "out")


@pytest.mark.parametrize(("format", "method"), [("quantized", "fp8"), ("int4_group", "compressed-tensors")])
def test_quantized_bases(format: str, method: str, adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    write_checkpoint(causal_lm(text_config(**SIZES, vocab=VOCAB)), folder, **{format: 32})  # type: ignore[arg-type]
    words = [f"is quantized (quant_method '{method}')", "original BF16 model", "deltart calibrate"]
    refused(CheckpointError, words, folder, adapter, tmp_path / "out")


def test_quantized_tensors_without_a_word_in_config_json(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    write_checkpoint(causal_lm(text_config(**SIZES, vocab=VOCAB)), folder, quantized=True)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DeltaRTError, match="F8_E4M3"):
        merge(folder, adapter, tmp_path / "out")


def test_routed_experts_of_a_sparse_base(tmp_path: Path) -> None:
    """The shared expert is linears like others; routed ones are parameters, which PEFT wraps in its own way."""
    folder = tmp_path / "sparse"
    sizes = SIZES | {"ffn": 96, "experts": Experts(7, 3, 80)}
    write_checkpoint(causal_lm(text_config(**sizes, vocab=VOCAB)), folder)
    shared = ["model.layers.0.mlp.shared_expert.up_proj", "model.layers.0.mlp.shared_expert_gate"]
    adapter = write_adapter(tmp_path / "adapter", folder, shared)
    merge(folder, adapter, tmp_path / "out")
    pair("model.layers.0.mlp.experts", 7 * 4, 80)(adapter)
    refused(MergeError, ["model.layers.0.mlp.experts", "merged by PEFT"], folder, adapter, tmp_path / "out2")


def test_disk_too_small(base: Base, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 10**6)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    refused(MergeError, ["GB free"], base("BF16"), adapter, tmp_path / "out")


def test_a_damaged_base(adapter: Path, own: Path, tmp_path: Path) -> None:
    (own / "model.safetensors").unlink()
    refused(CheckpointError, ["no weights"], own, adapter, tmp_path / "out")
    shutil.rmtree(own)
    refused(ConfigError, ["does not exist"], own, adapter, tmp_path / "out")
