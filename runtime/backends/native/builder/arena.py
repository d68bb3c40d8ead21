"""One block for tensors that live at different times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltart.runtime.backends.native.plan import ALIGNMENT


@dataclass(frozen=True)
class Life:
    """A tensor of `nbytes` that is written in step `first` and last read in step `last`."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        """Whether both are needed in some step."""
        return self.first <= other.last and other.first <= self.last


def place(lives: Sequence[Life]) -> tuple[Mapping[str, int], int]:
    """Offsets at which no two tensors that meet overlap, and the block's size: the largest first, each as low as it
    fits."""
    placed: list[tuple[int, int, Life]] = []  # begin, end
    for life in sorted(lives, key=lambda one: (-one.nbytes, one.first, one.name)):
        size, at = -(-life.nbytes // ALIGNMENT) * ALIGNMENT, 0
        for begin, end in sorted((b, e) for b, e, other in placed if other.meets(life)):
            if begin - at >= size:
                break
            at = max(at, end)
        placed.append((at, at + size, life))
    return {life.name: begin for begin, _, life in placed}, max((end for _, end, _ in placed), default=0)
