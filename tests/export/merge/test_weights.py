"""Merged weights against the methods' formulas in float64, and whatever else is in a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deltart.export.checkpoint import Checkpoint
from deltart.export.merge import weights
from deltart.export.merge.pipeline import RECORD, MergeRecord, merge
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from support.adapters import (
    PREFIX,
    WEIGHTS,
    Base,
    assert_rounded,
    delta,
    linears,
    magnitude,
    tensors_of,
    write_adapter,
)
from support.calibration import SIZES, VOCAB

TYPES = ("BF16", "F16", "F32")


def assert_untouched(base: Path, output: Path, record: MergeRecord) -> None:
    """Whatever was not merged is there, byte for byte, and every tensor in its place."""
    assert dict(Checkpoint(output)) == dict(Checkpoint(base)) and Checkpoint(output).files == Checkpoint(base).files
    before, after = tensors_of(base), tensors_of(output)
    assert before.keys() == after.keys()
    for name in before.keys() - record.weights.keys():
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rslora", [False, True])
def test_lora(dtype: str, rslora: bool, base: Base, tmp_path: Path) -> None:
    config = {"r": 6, "lora_alpha": 10, "use_rslora": rslora, "fan_in_fan_out": True}  # PEFT takes it for Conv1D only
    modules = [*linears(base(dtype)), "lm_head"]
    adapter = write_adapter(tmp_path / "adapter", base(dtype), modules, config=config)
    record = merge(base(dtype), adapter, tmp_path / "out")
    before, after = tensors_of(base(dtype)), tensors_of(tmp_path / "out")
    for module in modules:
        name = f"{module}.weight"
        assert after[name].dtype == before[name].dtype and not torch.equal(after[name], before[name])
        assert_rounded(after[name], before[name].double().numpy() + delta(adapter, module, 10, rslora))
    assert record.counts() == {"lora": 32}
    assert_untouched(base(dtype), tmp_path / "out", record)


@pytest.mark.parametrize("dtype", TYPES)
def test_dora(dtype: str, base: Base, tmp_path: Path) -> None:
    modules = linears(base(dtype))
    adapter = write_adapter(tmp_path / "adapter", base(dtype), modules, config={"use_dora": True})
    record = merge(base(dtype), adapter, tmp_path / "out")
    before, after = tensors_of(base(dtype)), tensors_of(tmp_path / "out")
    for module in modules:
        sums = before[f"{module}.weight"].double().numpy() + delta(adapter, module)
        expected = sums * (magnitude(adapter, module) / np.sqrt((sums**2).sum(1)))[:, None]
        assert_rounded(after[f"{module}.weight"], expected)
    assert record.counts() == {"dora": 31}


def test_patterns(base: Base, tmp_path: Path) -> None:
    """The first pattern that the end of a module's name matches, as a regular expression."""
    up, q, o = "model.layers.1.mlp.up_proj", "model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.o_proj"
    out = "model.layers.2.linear_attn.out_proj"
    config = {
        "rank_pattern": {"layers.1.mlp.up_proj": 7, "proj": 5, "q_proj": 2},
        "alpha_pattern": {"o_proj": 3, r"layers\.\d+\.linear_attn\..*": 5, "^model.layers.3.self_attn.q_proj": 1.5},
    }
    ranks = {up: 7, q: 2}  # "proj" is no component of a name
    adapter = write_adapter(tmp_path / "adapter", base("F32"), [up, q, o, out], config=config, ranks=ranks)
    merge(base("F32"), adapter, tmp_path / "out")
    before, after = tensors_of(base("F32")), tensors_of(tmp_path / "out")
    for module, alpha in {up: 8, q: 1.5, o: 3, out: 5}.items():
        expected = before[f"{module}.weight"].double().numpy() + delta(adapter, module, alpha)
        assert_rounded(after[f"{module}.weight"], expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_of_any_type_are_added_in_float32(stored: torch.dtype, base: Base, tmp_path: Path) -> None:
    modules = linears(base("BF16"))
    adapter = write_adapter(tmp_path / "adapter", base("BF16"), modules, dtype=stored)
    merge(base("BF16"), adapter, tmp_path / "out")
    before, after = tensors_of(base("BF16")), tensors_of(tmp_path / "out")
    for module in modules:
        name = f"{module}.weight"
        assert_rounded(after[name], before[name].double().numpy() + delta(adapter, module))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_embedding(dtype: str, base: Base, tmp_path: Path) -> None:
    """Whole, as PEFT saves it beside its LoRA, and then its LoRA, which is rounded to the embedding's type first."""
    name = "model.embed_tokens"
    before = tensors_of(base(dtype))[f"{name}.weight"]
    saved = {f"{name}.base_layer.weight": 2 * before}
    adapter = write_adapter(tmp_path / "adapter", base(dtype), [name], whole=saved)
    record = merge(base(dtype), adapter, tmp_path / "out")
    stored = load_file(adapter / WEIGHTS)
    a, b = (stored[f"{PREFIX}{name}.lora_embedding_{part}"].double() for part in "AB")
    added = ((b @ a).T * 2).to(before.dtype)
    found, expected = tensors_of(tmp_path / "out")[f"{name}.weight"], 2 * before.double() + added.double()
    assert_rounded(found, expected.numpy())
    if dtype == "BF16":  # a product that lies at the border of two values may have been rounded to the other one
        assert (found == expected.to(found.dtype)).double().mean() > 0.999
    assert record.weights == {f"{name}.weight": "embedding"}


def test_modules_that_were_saved_whole(base: Base, tmp_path: Path) -> None:
    """In the base's type, whatever they were trained in."""
    head, norm = torch.randn(VOCAB, 128), torch.randn(128)
    adapter = write_adapter(
        tmp_path / "adapter", base("BF16"), ["model.layers.3.self_attn.q_proj"],
        whole={"lm_head.weight": head, "model.norm.weight": norm}, config={"modules_to_save": ["lm_head", "norm"]},
    )  # fmt: skip
    (file,) = adapter.glob("*.json")
    config = json.loads(file.read_text())
    config["modules_to_save"] = ["lm_head", "model.norm"]
    file.write_text(json.dumps(config))
    record = merge(base("BF16"), adapter, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert torch.equal(after["lm_head.weight"], head.bfloat16())
    assert torch.equal(after["model.norm.weight"], norm.bfloat16())
    assert record.counts() == {"lora": 1, "whole": 2}
    assert_untouched(base("BF16"), tmp_path / "out", record)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("sees", "model.language_model."),
        ("sees", "model."),
        ("sees", "language_model.model."),
        ("F32", "model."),
        ("F32", "model.language_model."),
        ("F32", ""),
    ],
)
def test_names_of_either_class(kind: str, theirs: str, base: Base, tmp_path: Path) -> None:
    """Trained as a text model or as one that sees, merged into a checkpoint of either."""
    ours = "model.language_model." if kind == "sees" else "model."
    modules = [module for module in linears(base(kind)) if module.startswith(ours)]
    adapter = write_adapter(tmp_path / "adapter", base(kind), [*modules, "lm_head"], renamed=(ours, theirs))
    merge(base(kind), adapter, tmp_path / "out")
    same = write_adapter(tmp_path / "same", base(kind), [*modules, "lm_head"])
    merge(base(kind), same, tmp_path / "expected")
    found, expected = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "expected")
    assert len(modules) == 31 and all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found[f"{modules[0]}.weight"], tensors_of(base(kind))[f"{modules[0]}.weight"])


def test_the_tower_is_merged_too(base: Base, tmp_path: Path) -> None:
    modules = linears(base("sees"), ("qkv", "proj", "linear_fc1", "linear_fc2"))
    modules = [module for module in modules if "patch_embed" not in module]
    assert len(modules) == 10
    adapter = write_adapter(tmp_path / "adapter", base("sees"), modules)
    merge(base("sees"), adapter, tmp_path / "out")
    before, after = tensors_of(base("sees")), tensors_of(tmp_path / "out")
    for module in modules:
        name = f"{module}.weight"
        assert_rounded(after[name], before[name].double().numpy() + delta(adapter, module))


@pytest.mark.parametrize("config", [{}, {"use_dora": True}])
def test_blocks_change_no_bit(
    config: dict[str, Any], base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = ["model.embed_tokens", "lm_head"][bool(config) :] + linears(base("BF16"))
    adapter = write_adapter(tmp_path / "adapter", base("BF16"), modules, config=config)
    merge(base("BF16"), adapter, tmp_path / "whole")
    monkeypatch.setattr(weights, "BLOCK", 3000)  # 10 to 23 rows of a tensor
    merge(base("BF16"), adapter, tmp_path / "blocks")
    found, expected = tensors_of(tmp_path / "blocks"), tensors_of(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def sharded(folder: Path) -> Path:
    """A base of a file per layer with the rest that a checkpoint has, and some that is none of it."""
    write_checkpoint(causal_lm(text_config(**SIZES, vocab=VOCAB)), folder, file_per_layer=True)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    for name in ("generation_config.json", "tokenizer_config.json", "notes.md"):
        (folder / name).write_text("{}")
    (folder / "pytorch_model.bin").touch()
    (folder / ".gitattributes").touch()
    return folder


def test_the_rest_of_a_checkpoint_comes_along(tmp_path: Path) -> None:
    base = sharded(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, ["model.layers.1.mlp.up_proj"])
    (adapter / "tokenizer_config.json").write_text('{"added": 1}')
    said: list[str] = []
    record = merge(base, adapter, tmp_path / "out", log=said.append)
    files = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    left = {"pytorch_model.bin", ".gitattributes"}
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()} == (
        files - left | {RECORD}
    )
    for name in files - left:
        same = (base / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        linked = (base / name).samefile(tmp_path / "out" / name)
        changed = name == "layers-1.safetensors"
        assert same != changed and linked == (name.endswith(".safetensors") and not changed)
    assert sorted(record.files) == sorted(files - left)
    assert any("tokenizer_config.json of the adapter differs" in line for line in said)
    assert any("pytorch_model.bin holds weights of the base" in line for line in said)


def test_the_record(base: Base, adapter: Path, tmp_path: Path) -> None:
    record = merge(base("BF16"), adapter, tmp_path / "out")
    written = json.loads((tmp_path / "out" / RECORD).read_text())
    assert written["base_model"] == "family/base" and written["weights"] == dict(record.weights)
    assert set(written["adapter"]) == {"adapter_model.safetensors", "adapter_config.json"}


def test_fields_that_are_not_pefts_are_said(base: Base, tmp_path: Path) -> None:
    config = {"lora_dtype": "float32", "lorap_lr_ratio": None, "target_modules": ["q_proj", "up_proj"]}
    adapter = write_adapter(tmp_path / "adapter", base("BF16"), ["model.layers.3.self_attn.q_proj"], config=config)
    record = merge(base("BF16"), adapter, tmp_path / "out")
    assert len(record.notes) == 2
    assert record.notes[0].endswith("left aside: lora_dtype")
    assert "nothing for 4 linears that it targets, such as model.layers.0.mlp.up_proj" in record.notes[1]


def test_a_base_behind_links(base: Base, adapter: Path, tmp_path: Path) -> None:
    """As in the cache of the hub."""
    (tmp_path / "snapshot").mkdir()
    for path in base("BF16").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    merge(tmp_path / "snapshot", adapter, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "snapshot")
    assert tensors_of(tmp_path / "out")
