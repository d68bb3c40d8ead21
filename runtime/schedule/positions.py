"""Where a prompt's state is worth keeping: the places where the next request can meet it.

A chat's next prompt repeats this one up to a message's start: the system prompt and tools serve every conversation, the
start of the last user message a retry or an edit, and what follows the assistant's header is rendered anew, without
its thinking. So the places are found by the token that starts a message, whatever the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

INTERVAL = 4096  # tokens of a long prompt between two snapshots
HEADER_TOKENS = 4  # a message's start and what names its role: <|im_start|> assistant \n, and one to spare
TAIL_TOKENS = 16  # a snapshot at the prompt's end only where none is nearer than this


@dataclass(frozen=True)
class Marks:
    """Tokens that structure a conversation: the start of a message, and the roles' names that may follow it."""

    start: int
    user: int | None


def snapshot_points(
    ids: Sequence[int], marks: Marks | None, junction: int = 0, whole: Sequence[tuple[int, int]] = ()
) -> Mapping[int, str]:
    """Lengths of prefixes of `ids` to keep, shorter than `ids`, in ascending order, each with its kind.

    Args:
        marks: the tokenizer's message tokens; None where it has none.
        junction: where `ids` part from what was seen before, if that is worth keeping; else 0.
        whole: [begin, end) of pictures; a place within one moves to its beginning, so that a kept prefix holds whole
            pictures.
    """
    found: dict[int, str] = dict.fromkeys(range(INTERVAL, len(ids), INTERVAL), "interval")
    if junction:
        found[junction] = "junction"
    starts = _starts(ids, marks) if marks else []
    if starts:
        users = [at for at in starts if marks and at + 1 < len(ids) and ids[at + 1] == marks.user]
        found |= {at: "message" for at in (*users[:1], *users[-1:], starts[-1])}
        found |= {_after_header(ids, starts[-1]): "header"}
    if not any(point > len(ids) - TAIL_TOKENS for point in found):
        found[len(ids) - 1] = "end"
    found = {_outside(point, whole): kind for point, kind in found.items()}
    return {point: found[point] for point in sorted(found) if 0 < point < len(ids)}


def _outside(point: int, whole: Sequence[tuple[int, int]]) -> int:
    return next((begin for begin, end in whole if begin < point < end), point)


def _starts(ids: Sequence[int], marks: Marks) -> list[int]:
    found: list[int] = np.flatnonzero(np.asarray(ids) == marks.start).tolist()
    return found


def _after_header(ids: Sequence[int], start: int) -> int:
    """Behind the role's name and the newline of the last message, as far as the prompt goes on."""
    return min(start + HEADER_TOKENS - 1, len(ids) - 1)
