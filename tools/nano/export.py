"""Writes a trained nano as a checkpoint in the family's Hugging Face layout, in BF16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from tools.nano.model import Nano, text_fields
from tools.nano.tokenizer import stop_tokens

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
"""Every field of the family's text_config."""


def write(model: Nano, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes config, generation config, weights, tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config(model))
    _write_json(folder / "generation_config.json", generation_config(tokenizer))
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template)


def config(model: Nano) -> dict[str, Any]:
    known = model.config.to_dict()
    known |= text_fields(known["vocab_size"], known["eos_token_id"])  # transformers drops some of them
    return {"architectures": ["Qwen3_5ForCausalLM"]} | {name: known[name] for name in TEXT_FIELDS}


def generation_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Greedy by default, and both of the family's end tokens stop."""
    end, text_end = stop_tokens(tokenizer)
    return {
        "bos_token_id": text_end,
        "do_sample": False,
        "eos_token_id": [end, text_end],
        "pad_token_id": text_end,
    }


def tokenizer_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Token roles as in the family; the class is the one that takes tokenizer.json as it is."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.eos_token,
        "model_max_length": tokenizer.model_max_length,
        "pad_token": tokenizer.pad_token,
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
