"""The state of all slots of one graph, wherever it lies, and calls over some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

Range = tuple[int, int]  # slots [first, last)


class SlotBuffers(Protocol):
    """States of a graph for many sequences: caches have a row a token, recurrent states do not.

    Attributes:
        ragged: whether rows of several tokens each can share a call without loss; else each has one of its own.
        holds: whether `run` can leave recurrent states as they were until `keep`.
        slot_bytes: recurrent state of a slot.
        token_bytes: caches of a token.
        caches: names of the caches.
    """

    ragged: bool
    holds: bool

    @property
    def slot_bytes(self) -> int: ...

    @property
    def token_bytes(self) -> int: ...

    @property
    def caches(self) -> Sequence[str]: ...

    def run(
        self, rows: Range, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], hold: bool = False
    ) -> list[np.ndarray]:
        """One call on slots `rows`; `inputs` and the results have a row each. Results stand until the next call.

        Args:
            hold: leave the recurrent states as they were until `keep`; caches are written all the same.
        """

    def keep(self) -> None:
        """Let the states of the call that was held count."""

    def clear(self, slot: int) -> None:
        """Zero a slot's recurrent states. Caches need none: nothing reads beyond the tokens that were fed."""

    def read_cache(self, name: str, slot: int, first: int, last: int) -> np.ndarray:
        """A copy of rows [first, last) of a slot's cache, [Hkv, rows, D]."""

    def write_cache(self, name: str, slot: int, first: int, rows: np.ndarray) -> None:
        """Set a slot's cache from row `first` on."""

    def read_recurrent(self, slot: int) -> Mapping[str, np.ndarray]:
        """Copies of a slot's recurrent states."""

    def write_recurrent(self, slot: int, states: Mapping[str, np.ndarray]) -> None:
        """Set a slot's recurrent states."""

    def free(self, slot: int) -> None:
        """Hand a slot's memory back as far as that is possible."""

    def close(self) -> None:
        """Drop everything."""
