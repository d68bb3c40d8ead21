"""What the graphs take: token ids with their positions, counts and the logits that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np


def text_inputs(
    ids: np.ndarray,
    past_len: np.ndarray,
    n_tokens: np.ndarray | None = None,
    logit_index: np.ndarray | None = None,
    n_commit: np.ndarray | None = None,
    rope_shift: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Inputs of graph "model": ids int64 [B, T] after past_len int32 [B] tokens.

    Args:
        n_tokens: real tokens of each row, int32 [B]; all T when None.
        logit_index: tokens whose logits are wanted, int64 [B, L]; each row's last real token when None.
        n_commit: tokens of each row that the state advances by, int32 [B]; those between it and n_tokens are drafts,
            whose outputs are computed and which leave no trace. n_tokens when None.
        rope_shift: what each row's positions are ahead of the number of tokens, int64 [B]; 0 when None.
        positions: time, row and column of the tokens, int64 [3, B, T]; those of text when None.
    """
    rows, length = ids.shape
    counts = np.full(rows, length, np.int32) if n_tokens is None else n_tokens
    if positions is None:
        positions = np.empty((3, rows, length), np.int64)
        positions[:] = past_len[:, None] + np.arange(length) + (0 if rope_shift is None else rope_shift[:, None])
    return {
        "input_ids": ids,
        "position_ids": np.ascontiguousarray(positions, np.int64),
        "past_len": past_len,
        "n_tokens": counts,
        "n_commit": counts if n_commit is None else n_commit,
        "logit_index": np.maximum(counts[:, None].astype(np.int64) - 1, 0) if logit_index is None else logit_index,
    }


def mtp_inputs(
    ids: np.ndarray,
    previous_hidden: np.ndarray,
    past_len: np.ndarray,
    n_tokens: np.ndarray | None = None,
    logit_index: np.ndarray | None = None,
    rope_shift: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Inputs of graph "mtp": as text_inputs, and previous_hidden [B, T, H], the hidden state before each of `ids`.

    Its only state is K and V, whose rows a later call overwrites: it has no n_commit.
    """
    inputs = text_inputs(ids, past_len, n_tokens, logit_index, rope_shift=rope_shift, positions=positions)
    del inputs["n_commit"]
    return inputs | {"previous_hidden": previous_hidden}


def media_inputs(embeds: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of graphs that see, for one row: embeds f32 [M, H] and which of them each token is, int32 [T], or -1."""
    return {"vision_embeds": embeds, "vision_index": index[None]}


class Place(Protocol):
    """An input of a graph or a plan."""

    @property
    def name(self) -> str: ...

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape in a call of these sizes."""


def completed(taken: Sequence[Place], inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """`inputs` of a call that takes `taken`, with no pictures where it takes some and none are given."""
    if "vision_index" in inputs:
        return inputs
    embeds = next((place for place in taken if place.name == "vision_embeds"), None)
    return inputs if embeds is None else {**inputs, **_no_pictures(embeds.shape({"M": 1}), inputs["input_ids"].shape)}


@lru_cache(maxsize=64)
def _no_pictures(embeds: tuple[int, ...], ids: tuple[int, ...]) -> Mapping[str, np.ndarray]:
    """Inputs of calls without pictures, by their shapes; nobody may write to them."""
    found = {"vision_embeds": np.zeros(embeds, np.float32), "vision_index": np.full(ids, -1, np.int32)}
    for array in found.values():
        array.setflags(write=False)
    return found
