"""Inputs of the device sampler: the settings of each row, packed as the kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PROMPT_BIT = 1 << 30


@dataclass(frozen=True)
class Shape:
    """logits [rows, vocabulary]; ids from `limit` on are padding."""

    rows: int = 1
    vocabulary: int = 248320
    limit: int = 248077


@dataclass(frozen=True)
class Settings:
    """How one row is sampled: the fields of SamplingParams, and the step of its sequence."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    step: int = 0


def pack(rows: Sequence[Settings]) -> dict[str, np.ndarray]:
    """settings f32 [B, 6], top_k int32 [B], seed_step uint64 [B, 2]."""
    numbers = [
        (r.temperature, r.top_p, r.min_p, r.presence_penalty, r.frequency_penalty, r.repetition_penalty) for r in rows
    ]
    return {
        "settings": np.array(numbers, np.float32),
        "top_k": np.array([r.top_k for r in rows], np.int32),
        "seed_step": np.array([(r.seed, r.step) for r in rows], np.uint64),
    }


def counts(shape: Shape, prompt: Sequence[int], generated: Sequence[int]) -> np.ndarray:
    """counts int32 [V] of one row: how often each token was generated, plus PROMPT_BIT where the prompt has it."""
    found = np.bincount(np.array(generated, np.int64), minlength=shape.vocabulary).astype(np.int32)
    found[np.array(prompt, np.int64)] |= PROMPT_BIT
    return found
