"""The seam between generation and what computes: one protocol, numpy at its border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from deltart.manifest import Manifest


class SlotState(Protocol):
    """State of `slots` sequences of one graph, owned by the backend, with room for `capacity` tokens each."""

    slots: int
    capacity: int


class Backend(Protocol):
    """Runs the graphs of one artifact."""

    manifest: Manifest

    def new_state(self, graph: str, slots: int, capacity: int) -> SlotState:
        """Zeroed state for `slots` sequences of up to `capacity` tokens."""

    def run(
        self, graph: str, state: SlotState, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """One call of `graph`: reads `inputs`, advances `state`, returns `outputs` by name."""
