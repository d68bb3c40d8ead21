"""Configurations of synthetic checkpoints: the real 27B, 35B-A3B and the family's small dense models, and tiny ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Experts:
    """The routed experts of a sparse MLP: how many, how many of them a token takes, and the width of one."""

    count: int
    per_token: int
    width: int


def text_config(
    *, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, k_heads: int, v_heads: int, vocab: int,
    head_dim: int = 256, max_position: int = 262144, mtp: bool = True, yarn: float | None = None, tied: bool = False,
    experts: Experts | None = None,
) -> Config:  # fmt: skip
    """A text config with every field the real one has; layer types repeat three GDN, one attention.

    With `experts` the model is sparse, and `ffn` the width of its shared expert.
    """
    pairs = head_dim // 8  # a quarter of the head rotates, in pairs
    height, width = (pairs + 1) // 3, pairs // 3  # pairs 1, 4, ... and 2, 5, ...
    rope: Config = {
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [pairs - height - width, height, width],
    }
    if yarn is not None:
        rope |= {"rope_type": "yarn", "factor": yarn, "original_max_position_embeddings": int(max_position / yarn)}
    return {
        "model_type": "qwen3_5_moe_text" if experts else "qwen3_5_text",
        "dtype": "bfloat16",
        "vocab_size": vocab,
        "hidden_size": hidden,
        **(_sparse(experts, ffn) if experts else {"intermediate_size": ffn}),
        "num_hidden_layers": layers,
        "layer_types": [("full_attention" if n % 4 == 3 else "linear_attention") for n in range(layers)],
        "full_attention_interval": 4,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "attn_output_gate": True,
        "output_gate_type": "swish",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "linear_num_key_heads": k_heads,
        "linear_num_value_heads": v_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "initializer_range": 0.02,
        "max_position_embeddings": max_position,
        "rope_parameters": rope,
        "mtp_num_hidden_layers": int(mtp),
        "mtp_use_dedicated_embeddings": False,
        "tie_word_embeddings": tied,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }


def _sparse(experts: Experts, shared: int) -> Config:
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.width,
        "shared_expert_intermediate_size": shared,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
    }


def _family(text: Config) -> str:
    return "Qwen3_5Moe" if "num_experts" in text else "Qwen3_5"


def causal_lm(text: Config) -> Config:
    """The text-only checkpoint layout: text fields at the top level."""
    return {"architectures": [f"{_family(text)}ForCausalLM"], **text}


def conditional_generation(text: Config, vision: Config) -> Config:
    """The vendor's layout: text and vision side by side."""
    return {
        "architectures": [f"{_family(text)}ForConditionalGeneration"],
        "model_type": text["model_type"].removesuffix("_text"),
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "image_token_id": 248056,
        "video_token_id": 248057,
        "vision_start_token_id": 248053,
        "vision_end_token_id": 248054,
    }


def _qwen3_6_27b() -> Config:
    text = text_config(
        hidden=5120, ffn=17408, layers=64, heads=24, kv_heads=4, k_heads=16, v_heads=48, vocab=248320
    )  # fmt: skip
    return conditional_generation(text, _tower(text))


def _qwen3_6_35b_a3b() -> Config:
    text = text_config(
        hidden=2048, ffn=512, layers=40, heads=16, kv_heads=2, k_heads=16, v_heads=32, vocab=248320,
        experts=Experts(256, 8, 512),
    )  # fmt: skip
    return conditional_generation(text, _tower(text))


def _qwen3_5_0_8b() -> Config:
    text = text_config(
        hidden=1024, ffn=3584, layers=24, heads=8, kv_heads=2, k_heads=16, v_heads=16, vocab=248320, tied=True
    )  # fmt: skip
    return conditional_generation(text, _tower(text, depth=12, hidden=768, ffn=3072, heads=12))


def _qwen3_5_4b() -> Config:
    text = text_config(
        hidden=2560, ffn=9216, layers=32, heads=16, kv_heads=4, k_heads=16, v_heads=32, vocab=248320, tied=True
    )  # fmt: skip
    return conditional_generation(text, _tower(text, depth=24, hidden=1024, ffn=4096, heads=16))


def _qwen3_5_9b() -> Config:
    text = text_config(
        hidden=4096, ffn=12288, layers=32, heads=16, kv_heads=4, k_heads=16, v_heads=32, vocab=248320
    )  # fmt: skip
    return conditional_generation(text, _tower(text))


def _tower(text: Config, *, depth: int = 27, hidden: int = 1152, ffn: int = 4304, heads: int = 16) -> Config:
    return {
        "model_type": text["model_type"].removesuffix("_text"),
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_heads": heads,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "out_hidden_size": text["hidden_size"],
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": [],
    }


def _tiny() -> Config:
    text = text_config(
        hidden=256, ffn=384, layers=8, heads=4, kv_heads=1, k_heads=1, v_heads=3, vocab=1280, head_dim=64,
        max_position=4096,
    )  # fmt: skip
    return causal_lm(text)


def _tiny_moe() -> Config:
    text = text_config(
        hidden=256, ffn=128, layers=8, heads=4, kv_heads=1, k_heads=1, v_heads=2, vocab=1280, head_dim=64,
        max_position=4096, experts=Experts(16, 4, 128),
    )  # fmt: skip
    return causal_lm(text)


def _mid() -> Config:
    text = text_config(
        hidden=1024, ffn=3584, layers=24, heads=8, kv_heads=2, k_heads=8, v_heads=16, vocab=65536, max_position=32768
    )  # fmt: skip
    return causal_lm(text)


PRESETS: dict[str, Callable[[], Config]] = {
    "qwen3.6-27b": _qwen3_6_27b,
    "qwen3.6-27b-fp8": _qwen3_6_27b,
    "qwen3.6-27b-int4": _qwen3_6_27b,
    "qwen3.6-35b-a3b": _qwen3_6_35b_a3b,
    "qwen3.6-35b-a3b-fp8": _qwen3_6_35b_a3b,
    "qwen3.6-35b-a3b-int4": _qwen3_6_35b_a3b,
    "qwen3.5-0.8b": _qwen3_5_0_8b,
    "qwen3.5-0.8b-int4": _qwen3_5_0_8b,
    "qwen3.5-4b": _qwen3_5_4b,
    "qwen3.5-4b-int4": _qwen3_5_4b,
    "qwen3.5-9b": _qwen3_5_9b,
    "qwen3.5-9b-int4": _qwen3_5_9b,
    "tiny": _tiny,
    "tiny-fp8": _tiny,
    "tiny-int4": _tiny,
    "tiny-moe": _tiny_moe,
    "tiny-moe-fp8": _tiny_moe,
    "tiny-moe-int4": _tiny_moe,
    "mid": _mid,
    "mid-fp8": _mid,
}

# As the vendor publishes its FP8 models; in int4, so that no expert is cut.
FILE_PER_LAYER = ("qwen3.6-27b-fp8", "qwen3.6-35b-a3b-fp8", "qwen3.6-35b-a3b-int4")
