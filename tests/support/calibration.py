"""A tiny checkpoint whose linears all tile into blocks, text for it, and transformers' view of either format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3_5ForCausalLM

from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from support.cases import Exported
from support.reference import transformers_model

VOCAB = 320
SIZES: dict[str, Any] = dict(
    hidden=128, ffn=256, layers=4, heads=4, kv_heads=2, k_heads=1, v_heads=2, head_dim=64, max_position=2048
)


def write_tiny(folder: Path, dtype: str = "BF16", **sizes: Any) -> Path:
    """A checkpoint of 4 small layers and an MTP head."""
    write_checkpoint(causal_lm(text_config(**SIZES | sizes, vocab=VOCAB)), folder, dtype=dtype)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    return folder


def write_text(path: Path, rows: int = 40) -> Path:
    """Rows of token ids of uneven lengths, some tokens much more frequent than others."""
    rng = np.random.default_rng(0)
    ids = [(rng.zipf(1.3, int(rng.integers(20, 70))) % VOCAB).tolist() for _ in range(rows)]
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in ids))
    return path


def load(folder: Path) -> Qwen3_5ForCausalLM:
    """transformers' model in float32 with the folder's weights, dequantized by stored_weights."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    return transformers_model(Exported(config, folder, folder))


@torch.no_grad()
def log_probabilities(model: Qwen3_5ForCausalLM, row: list[int]) -> torch.Tensor:
    """[T, V] of one row of tokens, in float64."""
    logits: torch.Tensor = model(torch.tensor([row])).logits[0]
    return logits.double().log_softmax(-1)
