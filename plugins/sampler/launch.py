"""Launch geometry of the device sampler."""

from __future__ import annotations

from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.sampler.inputs import Shape

BINS = 256
OPTIONAL = ("counts", "allowed", "input_ids", "position_ids", "past_len", "n_tokens", "history")


def sample(shape: Shape, at: dict[str, int], threads: int = 1024, ring: int = 0) -> Launch:
    """One token per row. `at`: logits settings top_k seed_step token, scores (f32 [rows, vocabulary] of scratch);
    counts where penalties are in use, allowed where a grammar is. With `ring`, the tokens are fed to the next decode
    step: input_ids position_ids past_len n_tokens, and history for the last `ring` steps."""
    require(0 < shape.limit <= shape.vocabulary < 1 << 24, f"{shape.limit} of {shape.vocabulary} ids", "at least one")
    given = dict.fromkeys(OPTIONAL, 0) | at
    args = (
        *pointers(given, "logits", "settings", "top_k", "seed_step", "counts", "allowed", "scores", "token"),
        *pointers(given, "input_ids", "position_ids", "past_len", "n_tokens", "history"),
        *ints(shape.vocabulary, shape.limit, ring),
    )
    return Launch("sampler", (shape.rows, 1, 1), threads, 8 * (BINS + threads // 32 + 2), args)
