"""Launch geometry of the device sampler."""

from __future__ import annotations

from deltart.plugins.launch import Launch, ints, pointers, require
from deltart.plugins.sampler.inputs import Shape

BINS = 256
MAX_BLOCKS, MAX_THREADS = 64, 512
IDS_PER_BLOCK = 4096
BRACKETS = 16
WORK_BYTES = 32 + MAX_BLOCKS * (8 + 12 * BRACKETS + 4)  # of a row: `Work` in row.cuh
STEPS = ("top", "measure", "draw")
OPTIONAL = ("counts", "allowed", "input_ids", "position_ids", "past_len", "n_tokens", "history")


def workspace(shape: Shape) -> dict[str, int]:
    """Bytes of the scratch arrays. `work` is zero before the first call; later calls leave it fit for the next."""
    ids = 4 * shape.rows * shape.vocabulary
    return {"scores": ids, "list": ids, "work": WORK_BYTES * shape.rows}


def sample(
    shape: Shape, at: dict[str, int], ring: int = 0, threads: int = MAX_THREADS, blocks: int = 0
) -> list[Launch]:
    """One token per row. `at`: logits settings top_k seed_step token, and the arrays of `workspace`; counts where
    penalties are in use, allowed where a grammar is. With `ring`, the tokens are fed to the next decode step: input_ids
    position_ids past_len n_tokens, and history for the last `ring` steps. `blocks` of a row follow from the shape."""
    require(0 < shape.limit <= shape.vocabulary < 1 << 24, f"{shape.limit} of {shape.vocabulary} ids", "at least one")
    count = blocks or min(MAX_BLOCKS, -(-shape.limit // IDS_PER_BLOCK))
    args = (
        *pointers(dict.fromkeys(OPTIONAL, 0) | at, "logits", "settings", "top_k", "seed_step", "counts", "allowed"),
        *pointers(at, "scores", "list", "work", "token"),
        *pointers(dict.fromkeys(OPTIONAL, 0) | at, "input_ids", "position_ids", "past_len", "n_tokens", "history"),
        *ints(shape.vocabulary, shape.limit, ring),
    )
    shared = 8 * (BINS + MAX_THREADS // 32 + 4)
    return [Launch(f"sampler_{step}", (count, shape.rows, 1), threads, shared, args) for step in STEPS]
