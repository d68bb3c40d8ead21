"""Writes a trained nano as a checkpoint in the family's Hugging Face layout, in BF16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from tools.nano.model import Nano

TEXT_FIELDS = (
    "attention_bias", "attention_dropout", "attn_output_gate", "bos_token_id", "dtype", "eos_token_id",
    "full_attention_interval", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "layer_types", "linear_conv_kernel_dim", "linear_key_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mamba_ssm_dtype",
    "max_position_embeddings", "model_type", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "output_gate_type",
    "pad_token_id", "partial_rotary_factor", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "use_cache", "vocab_size",
)  # fmt: skip
"""Every field of the real family's text_config."""


def write(model: Nano, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes config, generation config, weights and tokenizer; every text field of the family is present."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config(model))
    _write_json(folder / "generation_config.json", generation_config(tokenizer))
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def config(model: Nano) -> dict[str, Any]:
    known = model.config.to_dict()
    return {"architectures": ["Qwen3_5ForCausalLM"]} | {name: known[name] for name in TEXT_FIELDS}


def generation_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Greedy by default, and both of the family's end tokens stop."""
    end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return {
        "bos_token_id": text_end,
        "do_sample": False,
        "eos_token_id": [end, text_end],
        "pad_token_id": text_end,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
