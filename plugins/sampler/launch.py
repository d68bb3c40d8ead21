"""Launch geometry of the device sampler."""

from __future__ import annotations

from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.sampler.inputs import Shape

BINS = 256


def sample(shape: Shape, at: dict[str, int], threads: int = 1024) -> Launch:
    """One token per row. `at`: logits settings top_k seed_step token, scores (f32 [rows, vocabulary] of scratch);
    counts where penalties are in use, allowed where a grammar is."""
    require(0 < shape.limit <= shape.vocabulary < 1 << 24, f"{shape.limit} of {shape.vocabulary} ids", "at least one")
    args = (
        *pointers(
            {"counts": 0, "allowed": 0} | at,
            "logits",
            "settings",
            "top_k",
            "seed_step",
            "counts",
            "allowed",
            "scores",
            "token",
        ),
        *ints(shape.vocabulary, shape.limit),
    )
    return Launch("sampler", (shape.rows, 1, 1), threads, 8 * (BINS + threads // 32 + 2), args)
