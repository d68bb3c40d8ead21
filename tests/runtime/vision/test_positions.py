"""Positions of prompts with pictures and videos against transformers' model."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

from deltart.runtime.vision.medium import Medium, Span
from deltart.runtime.vision.positions import positions, shift

REFERENCE = SimpleNamespace(
    config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)),
    get_vision_position_ids=lambda *args, **kw: Qwen3_5Model.get_vision_position_ids(REFERENCE, *args, **kw),
)


def medium(kind: str, grid: tuple[int, int, int]) -> Medium:
    return Medium(kind, np.zeros((1, 1, 1, 3), np.uint8), grid, 2)  # type: ignore[arg-type]


def random_prompt(rng: random.Random) -> tuple[int, list[Span], list[int], list[Medium]]:
    """Length, runs of placeholders, kinds of tokens and media of a prompt."""
    kinds, spans, media = [0] * rng.randint(1, 5), list[Span](), list[Medium]()
    for _ in range(rng.randint(1, 4)):
        video = rng.random() < 0.4
        grid = (rng.randint(1, 4) if video else 1, 2 * rng.randint(1, 9), 2 * rng.randint(1, 9))
        media.append(medium("video" if video else "image", grid))
        for frame in range(grid[0]):
            spans.append(Span(len(kinds), media[-1], frame))
            kinds += [2 if video else 1] * media[-1].frame_tokens + [0] * rng.randint(1, 6)
    return len(kinds), spans, kinds, media


@pytest.mark.parametrize("prompts", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_positions_and_shift_equal_transformers(prompts: int) -> None:
    rng = random.Random(prompts)
    for _ in range(prompts):
        length, spans, kinds, media = random_prompt(rng)
        grids = {kind: [m.grid for m in media if m.kind == kind] for kind in ("image", "video")}
        expected, delta = Qwen3_5Model.get_rope_index(
            REFERENCE, torch.zeros(1, length, dtype=torch.long), torch.tensor([kinds]),
            torch.tensor(grids["image"]) if grids["image"] else None,
            torch.tensor(grids["video"]) if grids["video"] else None,
        )  # fmt: skip
        assert np.array_equal(positions(length, spans), expected[:, 0].numpy())
        assert shift(length, spans) == int(delta) <= 0


def test_text_alone_counts_up() -> None:
    assert positions(3, []).tolist() == [[0, 1, 2]] * 3
    assert shift(3, []) == 0
