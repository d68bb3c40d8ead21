"""Decoding with the sampler on the host: for any backend that can run the text graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deltart.errors import GenerationError
from deltart.runtime.backends.base import Backend, DecodeRow, SlotState
from deltart.runtime.backends.inputs import text_inputs


class HostDecoder:
    """A `Decoder` that fetches the logits of every step and samples on the host."""

    def __init__(self, backend: Backend, state: SlotState, rows: Sequence[DecodeRow], steps: int) -> None:
        self._backend, self._state, self._rows, self._left = backend, state, list(rows), steps

    def step(self) -> list[int]:
        """See Decoder."""
        check_steps(self._left)
        self._left -= 1
        tokens = np.array([[row.token] for row in self._rows], np.int64)
        past = np.array([row.past for row in self._rows], np.int32)
        (logits,) = self._backend.run("model", self._state, text_inputs(tokens, past), ["logits"])
        for row, scores in zip(self._rows, logits[:, -1], strict=True):
            row.token, row.past = row.sampler.sample(scores), row.past + 1
        return [row.token for row in self._rows]


def check_steps(left: int) -> None:
    """Raises GenerationError when no step is left."""
    if left < 1:
        raise GenerationError("a step more than the decoder was made for", "at most its `steps`")
