"""The seam between generation and what computes: one protocol, numpy at its border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from deltart.manifest import Manifest
from deltart.runtime.backends.slots import Slots


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


class ServingBackend(Backend, Protocol):
    """A backend that also keeps many sequences at once, for the scheduler."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of host memory that the weights take once they are used."""

    @property
    def held_bytes(self) -> int:
        """Bytes of them that are in memory by now."""

    @property
    def sees(self) -> bool:
        """Whether `see` may be called, and prompts may hold pictures."""

    def see(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One call of the vision graph: patches f32 [F, S, ...] of frames of one grid, and that grid's inputs.

        Returns:
            f32 [F, S / merge^2, out].

        Raises:
            GenerationError: it failed, most likely for want of memory.
        """

    def open_slots(self, slots: int, max_context: int, vocab_limit: int, drafts: bool = True) -> Slots:
        """Slots for that many sequences of up to `max_context` tokens; ids from `vocab_limit` on are never drawn.

        Args:
            drafts: whether rows may ever have any; where none do, the MTP head costs nothing.

        Raises:
            ArtifactError: the artifact's engine was built for fewer.
        """
