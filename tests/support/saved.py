"""Checkpoints as people have them: transformers' own small model, saved in other ways than transformers saves it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5TextConfig

Config = dict[str, Any]
State = dict[str, torch.Tensor]

IDS = np.array([[77, 12, 201, 45, 9, 130, 88, 31, 222, 6, 64, 19]])
VISION = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 1, "in_channels": 3, "patch_size": 16}
VISION |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 4, "out_hidden_size": 128}
TEXT: Config = {
    "model_type": "qwen3_5_text",
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "eos_token_id": 3,
}
LINEARS = ("in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj")
LINEARS += ("gate_proj", "up_proj", "down_proj")  # type: ignore[assignment]


def text(**changes: Any) -> Config:
    """A text config; `rope` changes its rope_parameters."""
    config = copy.deepcopy(TEXT)
    config["rope_parameters"].update(changes.pop("rope", {}))
    return config | changes


def flat(config: Config) -> Config:
    """As a text model's config.json."""
    return {"architectures": ["Qwen3_5ForCausalLM"], **config}


def nested(config: Config, **changes: Any) -> Config:
    """As the config.json of the model with a vision tower."""
    tied = {"tie_word_embeddings": config["tie_word_embeddings"]}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": config,
        "vision_config": VISION, **tied, **changes,
    }  # fmt: skip


@torch.no_grad()
def model_of(config: Config, seed: int = 0) -> PreTrainedModel:
    """A random transformers model in float32 whose every tensor matters."""
    torch.manual_seed(seed)
    made = Qwen3_5TextConfig(**{k: copy.deepcopy(v) for k, v in config.items() if k != "model_type"})
    made._attn_implementation = "eager"
    model = Qwen3_5ForCausalLM(made).float().eval()
    for name, parameter in model.named_parameters():
        scale = 0.6 if "conv1d" in name else 0.05 if "norm" in name else parameter.shape[-1] ** -0.5
        parameter.copy_(torch.randn_like(parameter) * (scale if parameter.ndim > 1 or "norm" in name else 0.3))
    return model


def state_of(model: PreTrainedModel, prefix: str = "model.", head: str = "lm_head.") -> State:
    """Its tensors under other prefixes; without a head where it is the embedding."""
    state = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    starts = {"model.": prefix, "lm_head.": head}
    return {
        to + name.removeprefix(old): v
        for old, to in starts.items()
        for name, v in state.items()
        if name.startswith(old)
    }


def save(folder: Path, config: Config, state: Mapping[str, torch.Tensor], name: str = "model.safetensors") -> Path:
    """A checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / name, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> np.ndarray:
    """Logits of IDS."""
    logits: np.ndarray = model(input_ids=torch.from_numpy(IDS)).logits.float().numpy()
    return logits


def in_fp8(state: State, leaves: tuple[str, ...] = LINEARS, scales: torch.dtype = torch.float32) -> tuple[State, State]:
    """(the checkpoint's tensors with the linears named by `leaves` in block-128 FP8, what they stand for)."""
    stored, plain = dict(state), dict(state)
    for name, weight in state.items():
        if name.split(".")[-2] in leaves and weight.ndim == 2:
            blocks = [-(-size // 128) for size in weight.shape]
            wide = torch.zeros(blocks[0] * 128, blocks[1] * 128)
            wide[: weight.shape[0], : weight.shape[1]] = weight
            scale = (wide.view(blocks[0], 128, blocks[1], 128).abs().amax((1, 3)) / 448).clamp(min=1e-12).to(scales)
            spread = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
            spread = spread[: weight.shape[0], : weight.shape[1]]
            stored[name] = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            plain[name] = stored[name].float() * spread
    return stored, plain
