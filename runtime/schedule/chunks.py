"""How much of a prompt is read between two decode steps."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 16
WEIGHT = 0.2


@dataclass
class ChunkSize:
    """Pieces of prompts that take about as long as a decode step, so that rows wait at most twice as long for a token.

    Args:
        largest: tokens that the device reads in one call, where no row waits.
    """

    largest: int
    _tokens: float = SMALLEST
    _step: float = 0.0
    _last: float = 0.0

    def tokens(self, alone: bool) -> int:
        """Tokens of the next piece; `alone` where no row is decoding."""
        return self.largest if alone else int(min(max(self._tokens, SMALLEST), self.largest))

    def read(self, tokens: int, seconds: float) -> None:
        """A piece of `tokens` took `seconds`."""
        self._last = seconds
        if self._step and tokens >= SMALLEST and seconds > 0:
            fitting = tokens * self._step / seconds
            self._tokens += WEIGHT * (fitting - self._tokens)

    def measured(self, seconds: float) -> None:
        """A turn with a piece of a prompt and a decode step took `seconds`."""
        step = max(seconds - self._last, 1e-6)
        self._step = step if not self._step else self._step + WEIGHT * (step - self._step)
