"""Config groups of several schemes: what is read, by which precedence, and what is refused with a way on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltart.errors import CheckpointError, ConfigError
from deltart.export.bound import bind
from deltart.export.checkpoint import Checkpoint
from deltart.export.compressed_tensors import CompressedSpec, Fp8Scheme, Int4Scheme, read_compressed
from deltart.export.config_fields import Fields
from deltart.export.ledger import ledger_of
from deltart.export.spec import read_spec
from support.compressed import ATTENTION, BLOCK, CHANNEL, DELTA_NET, INT4, MLP, group, quantization, stored
from support.saved import LINEARS, State, flat, model_of, save, state_of, text

LEAVES = {INT4: LINEARS[7:], BLOCK: LINEARS[:3], CHANNEL: LINEARS[3:7]}
KINDS = {MLP: INT4, DELTA_NET: BLOCK, ATTENTION: CHANNEL}
UP, OUT, KEY = "model.layers.0.mlp.up_proj", "model.layers.0.linear_attn.out_proj", "model.layers.1.self_attn.k_proj"


def read(config: dict[str, Any]) -> CompressedSpec:
    return read_compressed(Fields(config, "config.json"))


def account(folder: Path, config: dict[str, Any], change: Callable[[State], object] = lambda s: None) -> None:
    tensors, _ = stored(state_of(model_of(text())), LEAVES, torch.bfloat16)
    change(tensors)
    checkpoint = save(folder, flat(text()) | {"quantization_config": config}, tensors)
    ledger_of(bind(read_spec(checkpoint), Checkpoint(checkpoint)))


def test_a_sound_checkpoint_is_accounted_for_and_named(tmp_path: Path) -> None:
    account(tmp_path, quantization(KINDS))
    assert str(read(quantization(KINDS))) == "packed int4 and FP8"


def test_formats_may_be_the_groups_or_the_files() -> None:
    config = quantization({MLP: INT4, "Linear": BLOCK})
    expected = read(config)
    for one in config["config_groups"].values():
        del one["format"]
    assert read(config) == expected
    alone = quantization({"Linear": CHANNEL}) | {"format": "float-quantized"}
    del alone["config_groups"]["group_0"]["format"]
    assert read(alone).scheme(UP) == Fp8Scheme(CHANNEL)


TARGETS = ("Linear", "re:.*mlp.*", "re:.*down_proj", "model.layers.0.mlp.down_proj", "re:model")
MODULES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", UP, KEY, "lm_head")


def test_a_name_counts_before_a_pattern_and_that_before_a_class() -> None:
    schemes = {"Linear": Fp8Scheme(BLOCK), MLP: Int4Scheme(32), f"{UP[:-7]}down_proj": Fp8Scheme(CHANNEL)}
    config = quantization({"Linear": BLOCK, MLP: INT4, f"{UP[:-7]}down_proj": CHANNEL})
    found = read(config)
    assert [found.scheme(m) for m in (KEY, UP, MODULES[0], "lm_head")] == [*schemes.values(), None]


@pytest.mark.slow
def test_precedence_is_that_of_compressed_tensors() -> None:
    match = pytest.importorskip("compressed_tensors.utils.match", reason="pip install compressed-tensors: the judge")
    linear = torch.nn.Linear(1, 1)
    for first in TARGETS:
        for second in TARGETS:
            config = quantization({first: INT4} | ({second: BLOCK} if second != first else {}))
            for module in MODULES[:4]:
                ordered = match.match_targets(module, linear, [first, second])
                expected = None if not ordered else Int4Scheme(32) if ordered[0] == first else Fp8Scheme(BLOCK)
                assert read(config).scheme(module) == expected, (first, second, module)


@pytest.mark.parametrize(
    ("changes", "found", "hint"),
    [
        ({"strategy": "tensor"}, "strategy is 'tensor'", "FP8_BLOCK or FP8_DYNAMIC"),
        ({"strategy": "block", "block_structure": [64, 128]}, "block_structure is [64, 128]", "FP8_BLOCK"),
        ({"symmetric": False}, "symmetric is False", "FP8_BLOCK"),
        ({"num_bits": 4}, "num_bits is 4", "FP8_BLOCK"),
    ],
)
def test_other_fp8_is_refused_by_name(changes: dict[str, Any], found: str, hint: str) -> None:
    config = quantization({MLP: INT4, "Linear": CHANNEL})
    config["config_groups"]["group_1"]["weights"] |= changes
    with pytest.raises(ConfigError) as refused:
        read(config)
    assert found in str(refused.value) and hint in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"input_activations": {"num_bits": 8, "type": "float", "dynamic": False}}, "dynamic is False"),
        ({"output_activations": {"num_bits": 8, "type": "float", "dynamic": True}}, "output_activations is given"),
        ({"format": "nvfp4-pack-quantized"}, "NVFP4 has no op here"),
        ({"format": "int-quantized"}, "format is 'int-quantized'"),
    ],
)
def test_groups_that_ask_for_more_are_refused_by_name(changes: dict[str, Any], found: str) -> None:
    config = quantization({MLP: INT4})
    config["config_groups"]["group_1"] = group(BLOCK, "Linear", activations=True)
    assert read(config).scheme(OUT) == Fp8Scheme(BLOCK)
    config["config_groups"]["group_1"] |= changes
    with pytest.raises(ConfigError) as refused:
        read(config)
    assert found in str(refused.value)


@pytest.mark.parametrize(
    ("kinds", "change", "found"),
    [
        (KINDS | {MLP: BLOCK}, lambda s: None, "FP8 with a scale per 128 x 128 values, as config.json says"),
        (KINDS | {DELTA_NET: INT4}, lambda s: None, "int4 in groups of 32, as config.json says"),
        (KINDS | {DELTA_NET: CHANNEL}, lambda s: None, ".weight_scale' has shape [1, 1]"),
        ({MLP: INT4, ATTENTION: CHANNEL}, lambda s: None, "no quantization: config.json leaves it as it is"),
        (KINDS, lambda s: s.pop(f"{OUT}.weight_scale"), f"'{OUT}.weight_scale' is missing"),
        (KINDS, lambda s: s.update({f"{KEY}.input_scale": torch.ones(1)}), "used by no graph"),
        (KINDS, lambda s: s.update({f"{OUT}.weight": s[f"{OUT}.weight"].bfloat16()}), "used by no graph"),
    ],
)
def test_config_and_tensors_agree(
    kinds: dict[str, str], change: Callable[[State], object], found: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as refused:
        account(tmp_path, quantization(kinds), change)
    assert found in str(refused.value)
