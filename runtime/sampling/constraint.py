"""What may come next in one sequence: the seam between structured output and the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Constraint(Protocol):
    """The tokens that may come next in one sequence. It lives on the host and is advanced by its own tokens only."""

    @property
    def finished(self) -> bool:
        """Whether nothing but an end-of-sequence token may follow."""

    def allowed(self) -> npt.NDArray[np.int32] | None:
        """int32 [ceil(V / 32)], bit i % 32 of word i // 32 set where token i may come next; None for any token."""

    def accept(self, token: int) -> None:
        """Record that `token` came."""

    def permits(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, one after the other, may come; records nothing."""

    def rollback(self, tokens: int) -> None:
        """Forget the last `tokens` accepted ones."""


class CompiledStructure(Protocol):
    """What a reply must look like, compiled for a vocabulary."""

    def matcher(self, thinking: bool) -> Constraint:
        """A constraint at the start of a reply; with `thinking` it begins after </think>."""
