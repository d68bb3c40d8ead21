"""A worker whose engine is slower than it should be: every run of the real session is followed by a busy wait.

    SLOWER=decode:0.15 python bench/latency/slow_worker.py

The wait is a share of the run's own time, for calls of one token a row (decode) or of more (prefill).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltart.latency import worker
from deltart.runtime.backends.ort_buffers import OrtBuffers


class SlowSession:
    """The session, and the wait behind its runs; other attributes are the session's."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.share = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        """As the session's; then wait `share` of what that took."""
        began = time.perf_counter()
        self.session.run_with_iobinding(binding)
        ended = time.perf_counter()
        until = ended + self.share * (ended - began)
        while time.perf_counter() < until:
            pass


def slow_down(phase: str, share: float) -> None:
    """Every engine that is opened from now on waits in this phase."""
    real = OrtBuffers.run

    def run(
        self: OrtBuffers, rows: Any, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], hold: bool = False
    ) -> list[np.ndarray]:
        if not isinstance(self._session, SlowSession):
            self._session = SlowSession(self._session)
        decoding = inputs["input_ids"].shape[1] == 1
        self._session.share = share if decoding == (phase == "decode") else 0.0
        return real(self, rows, inputs, outputs, hold)

    OrtBuffers.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    phase, _, share = os.environ["SLOWER"].partition(":")
    slow_down(phase, float(share))
    worker.main()
