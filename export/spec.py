"""`config.json` as one strict frozen dataclass: what the graph depends on, and nothing it does not."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from deltart.errors import ConfigError
from deltart.export.config_fields import Fields
from deltart.json_files import read_json
from deltart.text_files import check_folder

LINEAR, FULL = "linear_attention", "full_attention"
DENSE_ARCHITECTURES = ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM")
MOE_ARCHITECTURES = ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM")
# Fields of other sparse models, and what leaves the routing as it is here: any other value is another model.
OTHER_ROUTING = {
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
}


@dataclass(frozen=True)
class YarnSpec:
    """Static YaRN scaling (Peng et al., 2023)."""

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class RopeSpec:
    """Interleaved multimodal RoPE over the first `rotary_dim` of each head."""

    theta: float
    rotary_dim: int
    mrope_section: tuple[int, int, int]
    yarn: YarnSpec | None


@dataclass(frozen=True)
class MoeSpec:
    """Routed experts with one shared expert."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int


@dataclass(frozen=True)
class VisionSpec:
    """The vision tower's sizes."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    num_position_embeddings: int
    out_hidden_size: int


@dataclass(frozen=True)
class Fp8Spec:
    """The vendor's block-128 E4M3 weight quantization and the modules it skips."""

    modules_to_not_convert: tuple[str, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A Qwen3.5/3.6 text model with its optional MTP head. Field names are config.json's."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    mtp_num_hidden_layers: int
    rope: RopeSpec
    moe: MoeSpec | None
    vision: VisionSpec | None
    fp8: Fp8Spec | None

    @property
    def conv_dim(self) -> int:
        """Channels of the GDN convolution: q, k and v side by side."""
        return 2 * self.linear_num_key_heads * self.linear_key_head_dim + self.value_dim

    @property
    def value_dim(self) -> int:
        """Width of the GDN values and of the output gate z."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def text_prefix(self) -> str:
        """Prefix of the text model's tensors in the checkpoint."""
        return "model." if self.architecture.endswith("ForCausalLM") else "model.language_model."

    def with_yarn(self, factor: float) -> ModelSpec:
        """This model with its context stretched by static YaRN. Raises ConfigError for a factor <= 1."""
        if factor <= 1:
            raise ConfigError(f"YaRN factor {factor}", "a number above 1", "leave --yarn out for the native context")
        if self.rope.yarn is not None:
            raise ConfigError("--yarn given, but config.json already scales RoPE by YaRN", hint="leave --yarn out")
        yarn = YarnSpec(factor, self.max_position_embeddings)
        stretched = int(self.max_position_embeddings * factor)
        return replace(self, rope=replace(self.rope, yarn=yarn), max_position_embeddings=stretched)


def read_spec(checkpoint: Path) -> ModelSpec:
    """Parse `checkpoint`/config.json.

    Raises:
        ConfigError: the file is absent or malformed, a field is missing, or holds a value no graph here implements.
    """
    check_folder(checkpoint, ConfigError, "a Hugging Face checkpoint folder")
    path = checkpoint / "config.json"
    top = Fields(read_json(path), str(path))
    architecture = _architecture(top, path)
    text = top if architecture.endswith("ForCausalLM") else top.section("text_config")
    _refuse_unsupported(text)
    return ModelSpec(
        architecture=architecture,
        vocab_size=text.positive("vocab_size"),
        hidden_size=text.positive("hidden_size"),
        intermediate_size=0 if "Moe" in architecture else text.positive("intermediate_size"),
        layer_types=_layer_types(text),
        num_attention_heads=text.positive("num_attention_heads"),
        num_key_value_heads=_divisor(text, "num_key_value_heads", "num_attention_heads"),
        head_dim=text.positive("head_dim"),
        linear_num_key_heads=_divisor(text, "linear_num_key_heads", "linear_num_value_heads"),
        linear_num_value_heads=text.positive("linear_num_value_heads"),
        linear_key_head_dim=text.positive("linear_key_head_dim"),
        linear_value_head_dim=text.positive("linear_value_head_dim"),
        linear_conv_kernel_dim=text.positive("linear_conv_kernel_dim"),
        rms_norm_eps=text.required("rms_norm_eps", float),
        max_position_embeddings=text.positive("max_position_embeddings"),
        tie_word_embeddings=top.required("tie_word_embeddings", bool),
        mtp_num_hidden_layers=_mtp_layers(text),
        rope=_rope(text),
        moe=_moe(text) if "Moe" in architecture else None,
        vision=_vision(top.section("vision_config")) if "vision_config" in top else None,
        fp8=_fp8(top.section("quantization_config")) if "quantization_config" in top else None,
    )


def _architecture(top: Fields, path: Path) -> str:
    names = top.required("architectures", list)
    known = DENSE_ARCHITECTURES + MOE_ARCHITECTURES
    if len(names) != 1 or names[0] not in known:
        raise ConfigError(f"{path}: architectures is {names}", f"one of {', '.join(known)}", "use a Qwen3.5/3.6 model")
    return str(names[0])


def _refuse_unsupported(text: Fields) -> None:
    text.only_if_present("hidden_act", ["silu"])
    text.only_if_present("attention_bias", [False])
    text.only_if_present("attn_output_gate", [True])
    text.only_if_present("output_gate_type", ["swish", "silu"])
    text.only_if_present("mamba_ssm_dtype", ["float32"])
    text.only_if_present("mtp_use_dedicated_embeddings", [False])


def _layer_types(text: Fields) -> tuple[str, ...]:
    layers = text.positive("num_hidden_layers")
    types = text.required("layer_types", list)
    if len(types) != layers:
        raise text.error("layer_types", f"a list of {len(types)}", f"one entry for each of the {layers} layers")
    for layer, kind in enumerate(types):
        if kind not in (LINEAR, FULL):
            raise text.error(f"layer_types[{layer}]", kind, f"'{LINEAR}' or '{FULL}'")
    return tuple(types)


def _divisor(text: Fields, name: str, of: str) -> int:
    value, whole = text.positive(name), text.positive(of)
    if whole % value:
        raise text.error(name, value, f"a divisor of {of} = {whole}")
    return value


def _mtp_layers(text: Fields) -> int:
    layers = text.optional("mtp_num_hidden_layers", int, 0)
    if layers not in (0, 1):
        raise text.error("mtp_num_hidden_layers", layers, "0 or 1")
    return layers


def _rope(text: Fields) -> RopeSpec:
    if "rope_scaling" in text:
        raise text.error("rope_scaling", text.required("rope_scaling", object), "rope_parameters to carry the scaling")
    rope = text.section("rope_parameters")
    kind = rope.one_of("rope_type", ["default", "yarn"])
    rope.only_if_present("mrope_interleaved", [True])
    section = rope.required("mrope_section", list)
    source = rope if "partial_rotary_factor" in rope else text
    rotary_dim = int(text.positive("head_dim") * source.required("partial_rotary_factor", float))
    counts = len(section) == 3 and all(type(count) is int and count >= 0 for count in section)
    if not counts or rotary_dim % 2 or sum(section) != rotary_dim // 2:
        raise rope.error("mrope_section", section, f"three counts that add up to {rotary_dim // 2} rotary pairs")
    if any(axis + 3 * (section[axis] - 1) >= rotary_dim // 2 for axis in (1, 2)):
        raise rope.error("mrope_section", section, "H and W counts that fit between the T pairs, every third each")
    return RopeSpec(
        theta=rope.required("rope_theta", float),
        rotary_dim=rotary_dim,
        mrope_section=(section[0], section[1], section[2]),
        yarn=_yarn(rope) if kind == "yarn" else None,
    )


def _yarn(rope: Fields) -> YarnSpec:
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        if name in rope:
            raise rope.error(name, rope.required(name, object), "absent: the factor alone decides it here")
    rope.only_if_present("truncate", [True])
    return YarnSpec(
        factor=rope.required("factor", float),
        original_max_position=rope.positive("original_max_position_embeddings"),
        beta_fast=rope.optional("beta_fast", float, 32.0),
        beta_slow=rope.optional("beta_slow", float, 1.0),
    )


def _moe(text: Fields) -> MoeSpec:
    for name, only in OTHER_ROUTING.items():
        text.only_if_present(name, [only])
    experts, chosen = text.positive("num_experts"), text.positive("num_experts_per_tok")
    if chosen > experts:
        raise text.error("num_experts_per_tok", chosen, f"at most num_experts = {experts}")
    return MoeSpec(
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=text.positive("moe_intermediate_size"),
        shared_expert_intermediate_size=text.positive("shared_expert_intermediate_size"),
    )


def _vision(vision: Fields) -> VisionSpec:
    vision.only_if_present("hidden_act", ["gelu_pytorch_tanh"])
    vision.only_if_present("deepstack_visual_indexes", [[]])
    return VisionSpec(**{field.name: vision.positive(field.name) for field in fields(VisionSpec)})


def _fp8(quantization: Fields) -> Fp8Spec:
    quantization.one_of("quant_method", ["fp8"])
    quantization.only_if_present("fmt", ["e4m3"])
    quantization.one_of("activation_scheme", ["dynamic"])
    quantization.one_of("weight_block_size", [[128, 128]])
    skipped = quantization.optional("modules_to_not_convert", list, [])
    for name in skipped:
        if not isinstance(name, str):
            raise quantization.error("modules_to_not_convert", name, "module names")
    return Fp8Spec(tuple(skipped))
