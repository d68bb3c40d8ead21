"""How a call of the runtime becomes calls of plans: which phase, which rows, which pieces. No TensorRT, no CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deltart.dtypes import BY_NAME
from deltart.errors import GenerationError
from deltart.runtime.backends.gpu.engine_manifest import SPECULATE_TOKENS, PlanEntry

COUNTS = ("n_tokens", "n_commit")

NUMPY = {name: dtype.numpy for name, dtype in BY_NAME.items()}


@dataclass(frozen=True)
class Piece:
    """Tokens begin..end of one row, and the rows of its logits that lie in them, as positions in the piece."""

    begin: int
    end: int
    positions: list[int]


def phase_of(plans: Mapping[str, PlanEntry], sizes: Mapping[str, int]) -> str:
    """The phase that serves a call: "decode" or "speculate" on all slots where it fits, else "prefill", row by row."""
    batch = {axis: sizes[axis] for axis in ("T", "L")}
    return next((p for p in ("decode", "speculate") if p in plans and plans[p].profile.fits(batch)), "prefill")


def pieces(count: int, logit_index: Sequence[int], plan: PlanEntry) -> list[Piece]:
    """Cut the `count` tokens of a row so that each piece fits the prefill plan, its logits too."""
    most_tokens, most_rows = plan.profile.axes["T"][2], plan.profile.axes["L"][2]
    wanted = sorted({int(i) for i in logit_index if 0 <= i < count})
    cut, begin = [], 0
    while begin < count:
        end = min(begin + most_tokens, count)
        inside = [i for i in wanted if begin <= i < end]
        if len(inside) > most_rows:
            end, inside = inside[most_rows], inside[:most_rows]
        cut.append(Piece(begin, end, [i - begin for i in inside]))
        begin = end
    return cut


def piece_inputs(plan: PlanEntry, inputs: Mapping[str, np.ndarray], row: int, piece: Piece) -> dict[str, np.ndarray]:
    """The inputs of one piece: row `row` alone, its tokens alone, its past moved on by what came before."""
    chosen = {"B": slice(row, row + 1), "T": slice(piece.begin, piece.end)}
    whole = slice(None)
    cut = {
        b.name: inputs[b.name][tuple(chosen.get(axis, whole) if isinstance(axis, str) else whole for axis in b.axes)]
        for b in plan.by_role["input"]
    }
    if "vision_index" in cut:
        cut |= seen_rows(cut["vision_embeds"], cut["vision_index"])
    cut["past_len"] = cut["past_len"] + piece.begin
    cut |= {name: np.array([piece.end - piece.begin], np.int32) for name in COUNTS if name in cut}
    cut["logit_index"] = np.array([piece.positions or [0]], np.int64)
    return cut


def seen_rows(embeds: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """The media inputs of some tokens: of `embeds` [M, H] the rows from the first to the last that they take."""
    taken = index[index >= 0]
    first, last = (int(taken.min()), int(taken.max())) if taken.size else (0, 0)
    return {"vision_embeds": embeds[first : last + 1], "vision_index": np.where(index < 0, index, index - first)}


def pad_rows(plan: PlanEntry, inputs: Mapping[str, np.ndarray], slots: int) -> dict[str, np.ndarray]:
    """The inputs with as many rows as the plan has slots; added rows are zero, so they have no tokens."""
    padded = {}
    for binding in plan.by_role["input"]:
        array, axis = inputs[binding.name], binding.axes.index("B")
        missing = [(0, slots - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
        padded[binding.name] = np.pad(array, missing)
    return padded


def check_inputs(plan: PlanEntry, inputs: Mapping[str, np.ndarray], slots: int, capacity: int) -> dict[str, int]:
    """Sizes of B, T and L in a call.

    Raises:
        GenerationError: an input is missing or misshapen, the tokens do not fit the state, or more of them advance it
            than there are.
    """
    sizes: dict[str, int] = {"B": slots}
    for binding in plan.by_role["input"]:
        shape = inputs[binding.name].shape if binding.name in inputs else None
        for axis, size in zip(binding.axes, shape or (), strict=False):
            sizes.setdefault(str(axis), size) if isinstance(axis, str) else None
        expected = [axis if isinstance(axis, int) else sizes.get(axis) for axis in binding.axes]
        if shape is None or list(shape) != expected:
            raise GenerationError(f"input '{binding.name}' has shape {shape}", f"{expected} ({binding.axes})")
    needed = int((inputs["past_len"].astype(np.int64) + inputs["n_tokens"]).max())
    if needed > capacity:
        raise GenerationError(f"a row would hold {needed} tokens", f"at most {capacity}, the state's capacity")
    if "n_commit" in inputs and (inputs["n_commit"] > inputs["n_tokens"]).any():
        raise GenerationError(f"n_commit is {inputs['n_commit']}", f"at most n_tokens, {inputs['n_tokens']}")
    return sizes


def check_prefill(inputs: Mapping[str, np.ndarray]) -> None:
    """Raises GenerationError where a call that prefill serves has drafts: its kernels commit every token."""
    if "n_commit" in inputs and (inputs["n_commit"] != inputs["n_tokens"]).any():
        raise GenerationError(
            f"a call with drafts (n_commit {inputs['n_commit']}, n_tokens {inputs['n_tokens']}) is too long",
            f"at most {SPECULATE_TOKENS} tokens, of which logits may be asked",
            "feed what is committed first, then the drafts",
        )
