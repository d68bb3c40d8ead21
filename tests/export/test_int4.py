"""What is read of compressed-tensors' config and tensors, and what is refused with a way on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltart.errors import CheckpointError, ConfigError, ExportError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import names
from deltart.export.ledger import ledger_of
from deltart.export.pipeline import export_checkpoint
from deltart.export.spec import read_spec
from deltart.export.synthetic.write import synthesize
from support.packed import in_int4, scheme
from support.saved import LINEARS, State, flat, model_of, save, state_of, text

IGNORED = ["lm_head", "re:.*in_proj_[ab]$"]
UP = "model.layers.0.mlp.up_proj"


def write(folder: Path, quantization: dict[str, Any], change: Callable[[State], object] = lambda s: None) -> Path:
    stored, _ = in_int4(state_of(model_of(text())), LINEARS, 32, torch.bfloat16)
    change(stored)
    return save(folder, flat(text()) | {"quantization_config": quantization}, stored)


def account(folder: Path) -> None:
    ledger_of(bind(read_spec(folder), Checkpoint(folder)))


def test_a_sound_checkpoint_is_accounted_for(tmp_path: Path) -> None:
    account(write(tmp_path, scheme(32, IGNORED)))


@pytest.mark.parametrize(
    ("entry", "module", "named"),
    [
        ("Linear", "model.layers.0.mlp.up_proj", True),
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("re:.*mlp.*", "model.layers.0.mlp.up_proj", True),
        ("re:mlp", "model.layers.0.mlp.up_proj", False),  # a pattern begins where the name does
        ("re:model", "model.layers.0.mlp.up_proj", True),
    ],
)
def test_targets_and_ignore_lists(entry: str, module: str, named: bool) -> None:
    assert names(module, [entry]) == named


@pytest.mark.slow
def test_targets_are_matched_as_compressed_tensors_does() -> None:
    match = pytest.importorskip("compressed_tensors.utils.match", reason="pip install compressed-tensors: the judge")
    linear = torch.nn.Linear(1, 1)
    for module in ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.10.linear_attn.in_proj_a"):
        for entry in ("Linear", "lm_head", "re:.*mlp.*", "re:mlp", "re:.*in_proj_[ab]$", "re:.*layers.1", "up_proj"):
            assert names(module, [entry]) == match.is_match(module, linear, [entry])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"symmetric": False}, "symmetric is False"),
        ({"num_bits": 8}, "num_bits is 8"),
        ({"type": "float"}, "type is 'float'"),
        ({"strategy": "channel"}, "strategy is 'channel'"),
        ({"actorder": "group"}, "actorder is 'group'"),
        ({"actorder": True}, "actorder is True"),  # what compressed-tensors once read as 'group'
    ],
)
def test_other_schemes_are_refused_by_name(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'group_size' is 48"):
        read_spec(write(tmp_path, scheme(48, IGNORED)))
    with pytest.raises(ConfigError) as refused:
        read_spec(write(tmp_path, scheme(32, IGNORED, **changes)))
    assert found in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"transform_config": {"config_groups": {"u": {"type": "hadamard", "apply": []}}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
)
def test_what_would_change_the_weights_is_refused_by_name(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        read_spec(write(tmp_path, scheme(32, IGNORED) | changes))
    account(write(tmp_path, scheme(32, IGNORED) | {"transform_config": {}, "sparsity_config": {"format": "dense"}}))


@pytest.mark.parametrize(
    ("quantization", "hint"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQModifier"),
        ({"quant_method": "awq", "bits": 4}, "AWQModifier"),
        ({"quant_method": "auto-round", "bits": 4}, "format='llm_compressor'"),
        ({"quant_method": "modelopt"}, "NVFP4"),
        (scheme(32, []) | {"format": "nvfp4-pack-quantized"}, "NVFP4"),
    ],
)
def test_other_packings_are_told_how_to_convert(quantization: dict[str, Any], hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_spec(write(tmp_path, quantization))
    assert hint in str(refused.value)


def _cut_scale(state: State) -> None:
    state[f"{UP}.weight_scale"] = state[f"{UP}.weight_scale"][:, :3].contiguous()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.pop(f"{UP}.weight_scale"), f"'{UP}.weight_scale' is missing"),
        (lambda s: s.pop(f"{UP}.weight_shape"), f"'{UP}.weight_shape' is missing"),
        (lambda s: s.pop(f"{UP}.weight_packed"), f"'{UP}.weight' is missing"),
        (lambda s: s.update({f"{UP}.weight_shape": torch.tensor([256, 96])}), "says [256, 96]"),
        (lambda s: s.update({f"{UP}.weight_zero_point": torch.zeros(1)}), "asymmetric"),
        (lambda s: s.update({f"{UP}.weight_g_idx": torch.zeros(128)}), "ordered by activation"),
        (lambda s: s.update({"model.extra.weight_packed": torch.zeros(1, 1, dtype=torch.int32)}), "used by no graph"),
        (_cut_scale, "with scales [256, 3]"),
    ],
)
def test_broken_tensors_are_named(change: Callable[[State], object], found: str, tmp_path: Path) -> None:
    folder = write(tmp_path, scheme(32, IGNORED), change)
    with pytest.raises(CheckpointError) as refused:
        account(folder)
    assert found in str(refused.value)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (scheme(64, IGNORED), "groups of 64, as config.json says"),
        (scheme(32, [*IGNORED, UP]), "config.json leaves it as it is"),
        (None, "quantization_config of compressed-tensors"),
    ],
)
def test_config_and_tensors_agree(quantization: dict[str, Any] | None, expected: str, tmp_path: Path) -> None:
    folder = write(tmp_path, quantization or {})
    if quantization is None:
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as refused:
        account(folder)
    assert expected in str(refused.value)


def test_int8_activations_need_int4_weights(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "plain", flat(text()), state_of(model_of(text())))
    with pytest.raises(ExportError, match="without int4 linears"):
        export_checkpoint(checkpoint, tmp_path / "artifact", int4_activations="int8")


@pytest.mark.parametrize(
    ("preset", "gigabytes"),
    [("qwen3.6-27b-int4", 17), ("qwen3.5-9b-int4", 7.5), ("qwen3.5-4b-int4", 4), ("qwen3.5-0.8b-int4", 1)],
)
def test_int4_is_accounted_for_at_full_size(preset: str, gigabytes: float, tmp_path: Path) -> None:
    synthesize(preset, tmp_path / "checkpoint", sparse=True)
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    ledger_of(bind(read_spec(tmp_path / "checkpoint"), checkpoint))
    assert sum(info.nbytes for info in checkpoint.values()) / 1e9 == pytest.approx(gigabytes, rel=0.1)
