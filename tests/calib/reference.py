"""transformers' model of a text checkpoint folder, quantized or not, in float32 on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import FineGrainedFP8Config, Qwen3_5ForCausalLM


def load(folder: Path) -> Qwen3_5ForCausalLM:
    """Loaded by from_pretrained; FP8 goes through transformers' own path, which dequantizes on a CPU."""
    quantized = "quantization_config" in json.loads((folder / "config.json").read_text())
    kwargs = {"quantization_config": FineGrainedFP8Config(dequantize=True)} if quantized else {}
    model = Qwen3_5ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **kwargs)
    return model.eval().float()


@torch.no_grad()
def log_probabilities(model: Qwen3_5ForCausalLM, row: list[int]) -> torch.Tensor:
    """[T, V] of one row of tokens, in float64."""
    logits: torch.Tensor = model(torch.tensor([row])).logits[0]
    return logits.double().log_softmax(-1)
