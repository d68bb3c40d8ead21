"""config.json parsing: the real configurations field by field, YaRN, and the FP8 skip list."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

from deltart.errors import ConfigError
from deltart.export.formats import is_skipped
from deltart.export.layers import RotaryTable, attention_factor, inverse_frequencies, mrope_axes
from deltart.export.spec import ModelSpec, read_spec
from deltart.export.synthetic.presets import PRESETS, text_config


def spec_of(folder: Path, config: dict) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return read_spec(folder)


def test_real_27b(real_files: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((real_files / "Qwen3.6-27B.config.json").read_bytes())
    spec = read_spec(tmp_path)
    assert (spec.hidden_size, spec.intermediate_size, spec.vocab_size) == (5120, 17408, 248320)
    assert spec.layer_types == tuple("full_attention" if n % 4 == 3 else "linear_attention" for n in range(64))
    assert (spec.conv_dim, spec.value_dim, spec.rope.rotary_dim) == (10240, 6144, 64)
    assert spec.mtp_num_hidden_layers == 1 and spec.vision is not None and spec.fp8 is None and spec.moe is None
    assert spec.vision.depth == 27 and spec.vision.out_hidden_size == 5120


def test_real_fp8_skip_list(real_files: Path, tmp_path: Path) -> None:
    """The vendor's list holds MoE leftovers (mlp.gate) that must not hide gate_proj."""
    (tmp_path / "config.json").write_bytes((real_files / "Qwen3.6-27B-FP8.config.json").read_bytes())
    fp8 = read_spec(tmp_path).fp8
    assert fp8 is not None and len(fp8.modules_to_not_convert) == 882
    weights = json.loads((real_files / "Qwen3.6-27B-FP8.weights.derived.json").read_text())
    quantized = {name.removesuffix("_scale_inv") for name in weights if name.endswith("_scale_inv")}
    linears = {n for n, (_, shape) in weights.items() if n.endswith(".weight") and len(shape) == 2}
    linears -= {"model.language_model.embed_tokens.weight", "model.visual.pos_embed.weight"}
    assert len(quantized) == 407
    for name in linears:
        assert is_skipped(name.removesuffix(".weight"), fp8.modules_to_not_convert) == (name not in quantized), name


def test_real_35b_parses_with_its_experts(real_files: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((real_files / "Qwen3.6-35B-A3B.config.json").read_bytes())
    moe = read_spec(tmp_path).moe
    assert moe is not None and (moe.num_experts, moe.num_experts_per_tok, moe.moe_intermediate_size) == (256, 8, 512)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm_topk_prob", False),
        ("mlp_only_layers", [0]),
        ("decoder_sparse_step", 2),
        ("n_group", 8),
        ("routed_scaling_factor", 2.5),
        ("num_experts_per_tok", 257),
    ],
)
def test_other_routing_is_refused(field: str, value: object, tmp_path: Path) -> None:
    config = PRESETS["qwen3.6-35b-a3b"]()
    spec_of(tmp_path, config | {"text_config": config["text_config"] | {"norm_topk_prob": True, "mlp_only_layers": []}})
    with pytest.raises(ConfigError, match=field):
        spec_of(tmp_path, config | {"text_config": config["text_config"] | {field: value}})


@pytest.mark.parametrize(("preset", "real"), [("qwen3.6-27b", "27B"), ("qwen3.6-35b-a3b", "35B-A3B")])
def test_synthetic_models_have_the_real_spec(preset: str, real: str, real_files: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((real_files / f"Qwen3.6-{real}.config.json").read_bytes())
    assert spec_of(tmp_path, PRESETS[preset]()) == read_spec(tmp_path)


@pytest.mark.parametrize(
    ("module", "entry", "skipped"),
    [
        ("model.layers.0.mlp.gate_proj", "mlp.gate", False),
        ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.gate", False),
        ("model.layers.0.mlp.gate", "mlp.gate", True),
        ("model.layers.0.mlp.gate", "model.layers.0.mlp.gate", True),
        ("model.layers.10.mlp.up_proj", "model.layers.1", False),
        ("model.layers.1.mlp.up_proj", "model.layers.1", True),
        ("lm_head", "lm_head", True),
        ("mtp.fc", "fc", True),
        ("model.layers.0.linear_attn.in_proj_b", "in_proj_ba", False),
    ],
)
def test_skip_list_matches_on_module_boundaries(module: str, entry: str, skipped: bool) -> None:
    assert is_skipped(module, (entry,)) is skipped


def test_mrope_axes_of_the_real_sections() -> None:
    axes = mrope_axes((11, 11, 10))
    assert [i for i, a in enumerate(axes) if a == 1] == list(range(1, 32, 3))
    assert [i for i, a in enumerate(axes) if a == 2] == list(range(2, 30, 3))


def test_yarn_figures_of_the_real_model(tmp_path: Path) -> None:
    config = PRESETS["qwen3.6-27b"]()
    spec = spec_of(tmp_path, config).with_yarn(4.0)
    assert attention_factor(spec.rope.yarn) == pytest.approx(1.1386294, abs=1e-7)
    plain = [1e7 ** (-2 * i / 64) for i in range(32)]
    divisors = [p / f for p, f in zip(plain, inverse_frequencies(spec.rope), strict=True)]
    expected = [1.0] * 15 + [1.1034, 1.2308, 1.3913, 1.6, 1.8824, 2.2857, 2.9091] + [4.0] * 10
    assert divisors == pytest.approx(expected, abs=1e-4)
    assert spec.max_position_embeddings == 4 * 262144
    with pytest.raises(ConfigError, match="already scales"):
        spec.with_yarn(2.0)


@pytest.mark.parametrize("yarn", [None, 4.0])
def test_rotary_table_equals_transformers_for_vision_positions(yarn: float | None, tmp_path: Path) -> None:
    config = text_config(hidden=64, ffn=64, layers=4, heads=1, kv_heads=1, k_heads=1, v_heads=1, vocab=64, yarn=yarn)
    spec = spec_of(tmp_path, {"architectures": ["Qwen3_5ForCausalLM"], **config})
    positions = torch.randint(0, 200_000, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    cos, sin = RotaryTable(spec.rope, torch.float32)(positions)
    reference = Qwen3_5TextRotaryEmbedding(Qwen3_5TextConfig(**config))
    expected_cos, expected_sin = reference(torch.zeros(1), positions)
    half = spec.rope.rotary_dim // 2
    torch.testing.assert_close(cos, expected_cos[..., :half], atol=2e-6, rtol=0)
    torch.testing.assert_close(sin, expected_sin[..., :half], atol=2e-6, rtol=0)
    assert math.isclose(float((cos**2 + sin**2).mean()), attention_factor(spec.rope.yarn) ** 2, rel_tol=1e-5)
