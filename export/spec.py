"""`config.json` as one strict frozen dataclass: what the graph depends on, and nothing it does not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deltart.errors import ConfigError
from deltart.export import defaults
from deltart.export.compressed_tensors import METHOD, CompressedSpec, read_compressed, refuse_method
from deltart.export.config_fields import LARGEST, Fields
from deltart.export.rope import RopeSpec, YarnSpec, read_rope
from deltart.json_files import read_json, shown
from deltart.text_files import check_folder

LINEAR, FULL = "linear_attention", "full_attention"
# Model types of config.json, and the architecture where the file names none.
ARCHITECTURES = {
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
NAMES = re.compile(r"Qwen3_5(Moe)?(ForCausalLM|ForConditionalGeneration|Model|TextModel)")
# Of transformers' FineGrainedFP8Config.
FP8_DEFAULTS = {"activation_scheme": "dynamic", "weight_block_size": [128, 128]}
RENAMED = {"int4": "compressed"}  # fields of the spec that older manifests have under another name
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

    @property
    def grid_side(self) -> int:
        """Rows and columns of the table of positions."""
        return math.isqrt(self.num_position_embeddings)


@dataclass(frozen=True)
class Fp8Spec:
    """The vendor's block-128 E4M3 weight quantization, and the modules that config.json says it skips.

    What is quantized the checkpoint's tensors decide; the list is there for checkpoints that are still to be written,
    and may not contradict them.
    """

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
    compressed: CompressedSpec | None = None
    text_prefix: str = "model."  # of the text model's tensors; these four are settled by the checkpoint's names
    head_prefix: str = "lm_head."
    mtp_prefix: str = "mtp."
    vision_prefix: str = "model.visual."
    defaults: tuple[str, ...] = field(default=(), compare=False)  # what config.json leaves out, as "name = value"

    @property
    def conv_dim(self) -> int:
        """Channels of the GDN convolution: q, k and v side by side."""
        return 2 * self.linear_num_key_heads * self.linear_key_head_dim + self.value_dim

    @property
    def value_dim(self) -> int:
        """Width of the GDN values and of the output gate z."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def context_limit(self) -> int:
        """The longest sequence in tokens: what the model was made for, or what YaRN stretches it to."""
        stretched = self.rope.yarn.context if self.rope.yarn else 0
        return max(self.max_position_embeddings, stretched)

    def with_yarn(self, factor: float) -> ModelSpec:
        """This model with its context stretched by static YaRN.

        Raises:
            ConfigError: a factor that is not above 1 or too large, or config.json has one already.
        """
        if self.rope.yarn is not None:
            raise ConfigError(
                f"--yarn given, but config.json already scales RoPE by YaRN, with factor {self.rope.yarn.factor:g}",
                f"the {self.context_limit} tokens that it makes possible",
                "leave --yarn out, or change rope_parameters.factor in config.json",
            )
        if not 1 < factor <= LARGEST / self.max_position_embeddings:
            raise ConfigError(
                f"YaRN factor {factor}",
                f"a number above 1, and a context of at most {LARGEST} tokens",
                "leave --yarn out for the native context",
            )
        yarn = YarnSpec(factor, self.max_position_embeddings)
        return replace(self, rope=replace(self.rope, yarn=yarn), max_position_embeddings=yarn.context)


def read_spec(checkpoint: Path) -> ModelSpec:
    """Parse `checkpoint`/config.json; what it leaves out is what transformers takes for it.

    Raises:
        ConfigError: the file is absent or malformed, or a field holds a value that no graph here implements.
    """
    check_folder(checkpoint, ConfigError, "a Hugging Face checkpoint folder")
    path = checkpoint / "config.json"
    top = Fields(read_json(path), str(path))
    architecture = _architecture(top, path)
    table = defaults.MOE if "Moe" in architecture else defaults.TEXT
    text = top.section("text_config", table) if _is_nested(top) else Fields(top.values, str(path), table)
    try:
        return _spec(architecture, top, text)
    except ConfigError as error:
        if not text.taken:
            raise
        raise ConfigError(error.found, error.expected, f"{error.hint}; {_taken(text)}") from None


def _taken(text: Fields) -> str:
    """What the config leaves out, for messages."""
    return "missing, and taken from transformers: " + ", ".join(_assignments(text))


def _assignments(text: Fields) -> Iterator[str]:
    return (f"{name} = {json.dumps(value)}" for name, value in text.taken.items())


def _spec(architecture: str, top: Fields, text: Fields) -> ModelSpec:
    is_moe, nested = "Moe" in architecture, text.values is not top.values
    quantized = next((part for part in (top, text) if "quantization_config" in part), None)
    _refuse_unsupported(text)
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=text.positive("vocab_size"),
        hidden_size=text.positive("hidden_size"),
        intermediate_size=0 if is_moe else text.positive("intermediate_size"),
        layer_types=_layer_types(text),
        num_attention_heads=text.positive("num_attention_heads"),
        num_key_value_heads=_divisor(text, "num_key_value_heads", "num_attention_heads"),
        head_dim=text.positive("head_dim"),
        linear_num_key_heads=_divisor(text, "linear_num_key_heads", "linear_num_value_heads"),
        linear_num_value_heads=text.positive("linear_num_value_heads"),
        linear_key_head_dim=text.positive("linear_key_head_dim"),
        linear_value_head_dim=text.positive("linear_value_head_dim"),
        linear_conv_kernel_dim=text.positive("linear_conv_kernel_dim"),
        rms_norm_eps=text.number("rms_norm_eps", 0),
        max_position_embeddings=text.positive("max_position_embeddings"),
        tie_word_embeddings=text.required("tie_word_embeddings", bool)
        | top.optional("tie_word_embeddings", bool, False),
        mtp_num_hidden_layers=_mtp_layers(text),
        rope=read_rope(text),
        moe=_moe(text) if is_moe else None,
        vision=_vision(top, text) if nested and "vision_config" in top else None,
        **(_quantization(quantized) if quantized else {"fp8": None}),
        text_prefix="model.language_model." if nested else "model.",
    )
    return replace(spec, defaults=tuple(_assignments(text)))


def exported_spec(written: Mapping[str, Any]) -> ModelSpec:
    """The spec of an artifact, from its manifest's `spec`; tensors say what is quantized."""
    written = {RENAMED.get(name, name): value for name, value in written.items()}
    rope = dict(written["rope"])
    parts = {
        "layer_types": tuple(written["layer_types"]),
        "rope": RopeSpec(
            theta=rope["theta"],
            rotary_dim=rope["rotary_dim"],
            mrope_section=tuple(rope["mrope_section"]),
            yarn=YarnSpec(**rope["yarn"]) if rope["yarn"] else None,
        ),
        "moe": MoeSpec(**written["moe"]) if written["moe"] else None,
        "vision": VisionSpec(**written["vision"]) if written["vision"] else None,
        "fp8": Fp8Spec(()) if written["fp8"] else None,
        "compressed": CompressedSpec() if written["compressed"] else None,
        "defaults": tuple(written["defaults"]),
    }
    return ModelSpec(**{**written, **parts})


def _architecture(top: Fields, path: Path) -> str:
    """The architecture by name; the model type decides, and the name may not contradict it."""
    names = top.optional("architectures", list, [])
    kind = top.optional("model_type", str, "")
    known = ", ".join(ARCHITECTURES.values())
    if len(names) > 1 or not all(isinstance(name, str) and NAMES.fullmatch(name) for name in names):
        raise ConfigError(f"{path}: architectures is {shown(names)}", f"one of {known}", "use a Qwen3.5/3.6 model")
    if kind not in ARCHITECTURES and (kind or not names):
        raise ConfigError(
            f"{path}: model_type is {shown(kind)}", f"one of {', '.join(ARCHITECTURES)}", "use a Qwen3.5/3.6 model"
        )
    if names and kind and ("Moe" in names[0]) != ("moe" in kind):
        raise ConfigError(
            f"{path}: architectures is {names}, but model_type is '{kind}'", "one model", "correct the wrong one"
        )
    return str(names[0]) if names else ARCHITECTURES[kind]


def _is_nested(top: Fields) -> bool:
    """Whether the text model's fields are in a text_config, as in checkpoints with a vision tower."""
    flat = top.optional("model_type", str, "").endswith("_text") or "num_hidden_layers" in top
    return "text_config" in top or not flat


def _refuse_unsupported(text: Fields) -> None:
    text.only_if_present("is_causal", [True])
    text.only_if_present("hidden_act", ["silu"])
    text.only_if_present("attention_bias", [False])
    text.only_if_present("attn_output_gate", [True])
    text.only_if_present("output_gate_type", ["swish", "silu"])
    text.only_if_present("mamba_ssm_dtype", ["float32"])
    text.only_if_present("mtp_use_dedicated_embeddings", [False])


def _layer_types(text: Fields) -> tuple[str, ...]:
    layers = text.positive("num_hidden_layers")
    if "layer_types" not in text:
        every = text.positive("full_attention_interval")
        return tuple(LINEAR if number % every else FULL for number in range(1, layers + 1))
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


def _vision(top: Fields, text: Fields) -> VisionSpec:
    vision, text_hidden = top.section("vision_config"), text.positive("hidden_size")
    vision.only_if_present("hidden_act", ["gelu_pytorch_tanh"])
    vision.only_if_present("deepstack_visual_indexes", [[]])
    tower = VisionSpec(**{field.name: vision.positive(field.name) for field in fields(VisionSpec)})
    if tower.grid_side**2 != tower.num_position_embeddings:
        raise vision.error("num_position_embeddings", tower.num_position_embeddings, "a square: a table of positions")
    if tower.out_hidden_size != text_hidden:
        raise vision.error("out_hidden_size", tower.out_hidden_size, f"{text_hidden}, the text model's hidden_size")
    if tower.hidden_size % (4 * tower.num_heads):
        raise vision.error("num_heads", tower.num_heads, f"heads of a multiple of 4 of hidden_size {tower.hidden_size}")
    return tower


def _quantization(config: Fields) -> dict[str, Any]:
    method = config.section("quantization_config").required("quant_method", str)
    if method == METHOD:
        return {"fp8": None, "compressed": read_compressed(config.section("quantization_config"))}
    return {"fp8": _fp8(config.section("quantization_config", FP8_DEFAULTS))}


def _fp8(quantization: Fields) -> Fp8Spec:
    method = quantization.required("quant_method", str)
    if method != "fp8":
        raise refuse_method(quantization, method)
    quantization.only_if_present("fmt", ["e4m3"])
    quantization.one_of("activation_scheme", ["dynamic"])
    quantization.one_of("weight_block_size", [[128, 128]])
    listed = "ignored_layers" if "ignored_layers" in quantization else "modules_to_not_convert"
    skipped = quantization.optional(listed, list, [])
    for name in skipped:
        if not isinstance(name, str):
            raise quantization.error(listed, name, "module names")
    return Fp8Spec(tuple(skipped))
