"""What tests of native engines ask of the trained nano."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from deltart.runtime.text.tokenizer import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"
HELDOUT = NANO.parent / "heldout.jsonl"
BAR = 2e-2  # relative RMS of bfloat16 activations against float32, as verify allows an engine


def heldout_ids(count: int) -> np.ndarray:
    """Tokens of held-out questions, one after another."""
    lines = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()[:40]]
    text = " ".join(line["messages"][0]["content"] for line in lines)
    return np.array(Tokenizer.from_folder(NANO).encode(text)[:count])
