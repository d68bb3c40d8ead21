"""A tiny checkpoint whose linears all tile into blocks, its calibration text, and transformers' view of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltart.export.presets import causal_lm, text_config
from deltart.export.synthetic import write_checkpoint

VOCAB = 320
SIZES: dict[str, Any] = dict(hidden=128, ffn=256, layers=4, heads=2, kv_heads=1, k_heads=1, v_heads=2, head_dim=128)


def write_tiny(folder: Path, dtype: str = "BF16", **sizes: Any) -> Path:
    write_checkpoint(causal_lm(text_config(**SIZES | sizes, vocab=VOCAB, max_position=2048)), folder, dtype=dtype)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of token ids of uneven lengths, some tokens much more frequent than others."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [(rng.zipf(1.3, int(rng.integers(20, 70))) % VOCAB).tolist() for _ in range(40)]
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return path
