"""Copies of a slot's state to and from snapshots, in host memory."""

from __future__ import annotations

import numpy as np

from deltart.runtime.backends.ort_buffers import OrtBuffers
from deltart.runtime.backends.slots import Block, Snapshot

BLOCK_TOKENS = 256  # of a full block


class SlotCopies:
    """Saves and loads slots; remembers each slot's full blocks, so that its snapshots share them.

    Args:
        text: buffers of the text graph.
        mtp: those of the MTP head, whose caches are one token behind; None without one.
    """

    def __init__(self, text: OrtBuffers, mtp: OrtBuffers | None) -> None:
        self._text, self._mtp = text, mtp
        self._full: dict[int, list[Block]] = {}

    def save(self, slot: int, past: int, hidden: np.ndarray) -> Snapshot:
        """The state of `slot`, which holds `past` tokens."""
        full = self._full.setdefault(slot, [])
        for first in range(len(full) * BLOCK_TOKENS, past - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            full.append(self._block(slot, first, first + BLOCK_TOKENS))
        blocks = full[: past // BLOCK_TOKENS]
        if past % BLOCK_TOKENS:
            blocks = [*blocks, self._block(slot, past - past % BLOCK_TOKENS, past)]
        recurrent = {name: array[slot].copy() for name, array in self._text.recurrent.items()}
        return Snapshot(past, recurrent, tuple(blocks), hidden.copy())

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """Set `slot` to the state of `snapshot`."""
        first = 0
        for block in snapshot.blocks:
            for name, rows in block.caches.items():
                cache, begin = self._place(name, first)
                cache[slot, :, begin : begin + rows.shape[1]] = rows
            first += block.tokens
        for name, array in snapshot.recurrent.items():
            self._text.recurrent[name][slot] = array
        self._full[slot] = [block for block in snapshot.blocks if block.tokens == BLOCK_TOKENS]

    def forget(self, slot: int) -> None:
        """The slot begins a new sequence."""
        self._full.pop(slot, None)

    def _block(self, slot: int, first: int, last: int) -> Block:
        caches = {name: cache[slot, :, first:last].copy() for name, cache in self._text.caches.items()}
        if self._mtp:
            begin = max(first - 1, 0)
            caches |= {
                f"mtp.{name}": cache[slot, :, begin : last - 1].copy() for name, cache in self._mtp.caches.items()
            }
        return Block(last - first, caches)

    def _place(self, name: str, first: int) -> tuple[np.ndarray, int]:
        """The cache that a block's rows belong to, and the row of its first token."""
        if name in self._text.caches:
            return self._text.caches[name], first
        assert self._mtp is not None
        return self._mtp.caches[name.removeprefix("mtp.")], max(first - 1, 0)
