"""Copies of a slot's state to and from snapshots, in host memory."""

from __future__ import annotations

import numpy as np

from deltart.runtime.backends.buffers import SlotBuffers
from deltart.runtime.backends.slots import Block, Snapshot

BLOCK_TOKENS = 256  # of a full block
MTP = "mtp."  # before the names of the MTP head's caches


class SlotCopies:
    """Saves and loads slots; remembers each slot's full blocks, so that its snapshots share them.

    Args:
        text: buffers of the text graph.
        mtp: those of the MTP head, whose caches are one token behind; None without one.
    """

    def __init__(self, text: SlotBuffers, mtp: SlotBuffers | None) -> None:
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
        return Snapshot(past, self._text.read_recurrent(slot), tuple(blocks), hidden.copy())

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """Set `slot` to the state of `snapshot`."""
        first = 0
        for block in snapshot.blocks:
            for name, rows in block.caches.items():
                self._write(name, slot, first, rows)
            first += block.tokens
        self._text.write_recurrent(slot, snapshot.recurrent)
        self._full[slot] = [block for block in snapshot.blocks if block.tokens == BLOCK_TOKENS]

    def forget(self, slot: int) -> None:
        """The slot begins a new sequence."""
        self._full.pop(slot, None)

    def _block(self, slot: int, first: int, last: int) -> Block:
        caches = {name: self._text.read_cache(name, slot, first, last) for name in self._text.caches}
        if self._mtp:
            begin = max(first - 1, 0)
            caches |= {f"{MTP}{name}": self._mtp.read_cache(name, slot, begin, last - 1) for name in self._mtp.caches}
        return Block(last - first, caches)

    def _write(self, name: str, slot: int, first: int, rows: np.ndarray) -> None:
        """Set the rows of a block whose first token is `first`."""
        if not name.startswith(MTP):
            self._text.write_cache(name, slot, first, rows)
        elif self._mtp is not None:
            self._mtp.write_cache(name.removeprefix(MTP), slot, max(first - 1, 0), rows)
