"""config.json parsing: the real configurations field by field, YaRN, and the FP8 skip list."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import Qwen3_5MoeTextConfig, Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

from deltart.errors import ConfigError
from deltart.export import defaults
from deltart.export.formats import is_skipped
from deltart.export.layers import RotaryTable, attention_factor, inverse_frequencies, mrope_axes
from deltart.export.spec import ModelSpec, exported_spec, read_spec
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


TEXT = text_config(hidden=64, ffn=64, layers=4, heads=1, kv_heads=1, k_heads=1, v_heads=1, vocab=64)
FLAT = {"architectures": ["Qwen3_5ForCausalLM"], **TEXT}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


def _rope(**changes: object) -> dict:
    return FLAT | {"rope_parameters": TEXT["rope_parameters"] | changes}


# What transformers takes without a word, or warns of, and no graph here can mean: (config, words of the message).
REFUSED = {
    "bidirectional attention": (FLAT | {"is_causal": False}, ["is_causal"]),
    "YaRN factor below 1": (_rope(**YARN | {"factor": 0.5}), ["factor"]),
    "YaRN factor of NaN": (_rope(**YARN | {"factor": float("nan")}), ["NaN"]),
    "YaRN factor of text": (_rope(**YARN | {"factor": "4"}), ["factor"]),
    "YaRN over a context of 1": (_rope(**YARN | {"original_max_position_embeddings": 1}), ["original_max"]),
    "YaRN over a context of 2^63": (_rope(**YARN | {"original_max_position_embeddings": 2**63}), ["original_max"]),
    "YaRN over too large a context": (_rope(**YARN | {"original_max_position_embeddings": 2**31 - 1}), ["factor"]),
    "YaRN with its betas exchanged": (_rope(**YARN | {"beta_fast": 0.01, "beta_slow": 32}), ["between which"]),
    "YaRN with a negative beta": (_rope(**YARN | {"beta_fast": -1}), ["beta_fast"]),
    "YaRN with its own attention factor": (_rope(**YARN | {"attention_factor": 1.5}), ["attention_factor"]),
    "YaRN without truncation": (_rope(**YARN | {"truncate": False}), ["truncate"]),
    "base of 1": (_rope(rope_theta=1), ["rope_theta", "above 1"]),
    "base below 1": (_rope(rope_theta=0.5), ["rope_theta"]),
    "negative base": (_rope(rope_theta=-1e4), ["rope_theta"]),
    "infinite base": (_rope(rope_theta=float("inf")), ["Infinity"]),
    "null base": (_rope(rope_theta=None), ["rope_theta"]),
    "epsilon of NaN": (FLAT | {"rms_norm_eps": float("nan")}, ["NaN"]),
    "negative epsilon": (FLAT | {"rms_norm_eps": -1e-6}, ["rms_norm_eps"]),
    "infinite epsilon": (FLAT | {"rms_norm_eps": float("inf")}, ["Infinity"]),
    "null epsilon": (FLAT | {"rms_norm_eps": None}, ["rms_norm_eps", "missing"]),
    "rotary factor above 1": (_rope(partial_rotary_factor=1.5), ["partial_rotary_factor"]),
    "rotary factor of 0": (_rope(partial_rotary_factor=0), ["partial_rotary_factor"]),
    "a base for each kind of layer": (_rope(full_attention={"rope_theta": 1e4}), ["full_attention", "all layers"]),
    "rope_scaling beside rope_parameters": (FLAT | {"rope_scaling": YARN}, ["rope_scaling", "inside rope_parameters"]),
    "another scaling": (_rope(rope_type="llama3", factor=8.0), ["rope_type", "yarn"]),
    "sizes beyond all measure": (FLAT | {"vocab_size": 2**40}, ["vocab_size"]),
    "another model type": (FLAT | {"model_type": "qwen3"}, ["model_type", "qwen3_5_text"]),
    "another architecture": (FLAT | {"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM"]),
    "a classifier": (FLAT | {"architectures": ["Qwen3_5ForSequenceClassification"]}, ["SequenceClassification"]),
    "a sparse name of a dense model": (FLAT | {"architectures": ["Qwen3_5MoeForCausalLM"]}, ["Moe", "one model"]),
    "neither name": ({k: v for k, v in TEXT.items() if k != "model_type"}, ["model_type"]),
    "tensor-wide FP8": (FLAT | {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}, ["block"]),
    "static activations": (
        FLAT | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}},
        ["activation_scheme"],
    ),
    "another quantization": (FLAT | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["gptq", "fp8"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_means_is_refused(name: str, tmp_path: Path) -> None:
    config, words = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        spec_of(tmp_path, config)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value), word


@pytest.mark.parametrize(
    ("table", "config"), [(defaults.TEXT, Qwen3_5TextConfig), (defaults.MOE, Qwen3_5MoeTextConfig)]
)
def test_defaults_are_those_of_transformers(table: dict, config: type) -> None:
    theirs = config()
    for name, value in table.items():
        if name != "full_attention_interval":  # which transformers' class takes, and does not keep
            assert getattr(theirs, name) == value, name
    rope = {name: value for name, value in defaults.ROPE.items() if name != "mrope_section"}
    assert theirs.rope_parameters == rope
    assert Qwen3_5TextRotaryEmbedding(Qwen3_5TextConfig()).mrope_section == defaults.ROPE["mrope_section"]
    # Every field that the spec reads under its own name, and that the class has a value for, is in the table.
    fields = {field.name for field in dataclasses.fields(ModelSpec)} & vars(theirs).keys()
    assert fields - table.keys() <= {"layer_types", "rope_parameters", "architectures"}


def test_an_empty_config_is_that_of_transformers(tmp_path: Path) -> None:
    spec, theirs = spec_of(tmp_path, {"model_type": "qwen3_5_text"}), Qwen3_5TextConfig()
    assert spec.layer_types == tuple(theirs.layer_types)
    assert (spec.hidden_size, spec.rms_norm_eps) == (theirs.hidden_size, theirs.rms_norm_eps)
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert "hidden_size = 4096" in spec.defaults and "rope_parameters.rope_theta = 10000.0" in spec.defaults


PLACES = {
    "rope_type by its older name": _rope(**{"type": "yarn", **{k: v for k, v in YARN.items() if k != "rope_type"}}),
    "no original context": _rope(rope_type="yarn", factor=2.0),
    "original context beside": _rope(rope_type="yarn", factor=2.0) | {"original_max_position_embeddings": 8192},
    "null betas": _rope(**YARN | {"beta_fast": None, "beta_slow": None}),
    "other betas": _rope(**YARN | {"beta_fast": 16, "beta_slow": 2.5}),
    "a factor of 1": _rope(**YARN | {"factor": 1}),
    "an integer factor": _rope(**YARN | {"factor": 4}),
    "a small context": _rope(**YARN | {"original_max_position_embeddings": 16}),
    "base and factor beside": FLAT
    | {"rope_parameters": {"mrope_section": [11, 11, 10]}, "rope_theta": 5e5, "partial_rotary_factor": 0.25},
    "rope_scaling alone": {k: v for k, v in FLAT.items() if k != "rope_parameters"}
    | {"rope_scaling": YARN | {"mrope_section": [11, 11, 10]}, "rope_theta": 1e6},
}


@pytest.mark.parametrize("name", PLACES)
def test_rope_is_read_where_transformers_reads_it(name: str, tmp_path: Path) -> None:
    config = copy.deepcopy(PLACES[name])
    if name == "rope_type by its older name":
        del config["rope_parameters"]["rope_type"]
    if name == "no original context":
        config["max_position_embeddings"] = 8192
    spec = spec_of(tmp_path, config)
    theirs = Qwen3_5TextRotaryEmbedding(Qwen3_5TextConfig(**{k: v for k, v in config.items() if k != "architectures"}))
    torch.testing.assert_close(torch.tensor(inverse_frequencies(spec.rope)), theirs.inv_freq, rtol=1e-5, atol=0)
    assert attention_factor(spec.rope.yarn) == pytest.approx(theirs.attention_scaling)


def test_yarn_as_the_model_card_writes_it(tmp_path: Path) -> None:
    """The card leaves max_position_embeddings as it is; the factor says how far the model goes."""
    spec = spec_of(tmp_path, _rope(**YARN) | {"max_position_embeddings": 4096})
    assert spec.context_limit == 16384
    assert spec_of(tmp_path, _rope(**YARN) | {"max_position_embeddings": 16384}).context_limit == 16384
    assert spec_of(tmp_path, FLAT | {"max_position_embeddings": 4096}).with_yarn(2.5).context_limit == 10240
    with pytest.raises(ConfigError) as caught:
        spec.with_yarn(2.0)
    assert "rope_parameters.factor" in caught.value.hint
    for factor in (1.0, 0.5, 1e12, float("nan")):
        with pytest.raises(ConfigError, match="YaRN factor"):
            spec_of(tmp_path, FLAT).with_yarn(factor)


def test_an_exported_spec_is_the_one_that_was_exported(tmp_path: Path) -> None:
    for config in (FLAT, _rope(**YARN), PRESETS["qwen3.6-27b"](), PRESETS["qwen3.6-35b-a3b"]()):
        spec = spec_of(tmp_path, config)
        written = json.loads(json.dumps(dataclasses.asdict(spec) | {"fp8": spec.fp8 is not None}))
        assert exported_spec(written) == spec
