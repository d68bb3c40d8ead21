"""The seam between generation and what computes: one protocol, numpy at its border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deltart.manifest import Manifest
from deltart.runtime.backends.slots import Slots
from deltart.runtime.sampling.sampler import Sampler


class SlotState(Protocol):
    """State of `slots` sequences of one graph, owned by the backend, with room for `capacity` tokens each."""

    slots: int
    capacity: int


@dataclass
class DecodeRow:
    """One sequence to go on with: `past` tokens are in the state, `token` comes next, `sampler` draws what follows."""

    token: int
    past: int
    sampler: Sampler


class Decoder(Protocol):
    """Sequences that are fed their own tokens: slot b of a state is row b."""

    def step(self) -> list[int]:
        """The next token of every row, which its sampler has accepted.

        Raises:
            GenerationError: a row's largest logit is not finite, or all steps were taken.
        """


class Backend(Protocol):
    """Runs the graphs of one artifact."""

    manifest: Manifest

    def new_state(self, graph: str, slots: int, capacity: int) -> SlotState:
        """Zeroed state for `slots` sequences of up to `capacity` tokens."""

    def run(
        self, graph: str, state: SlotState, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """One call of `graph`: reads `inputs`, advances `state`, returns `outputs` by name."""

    def decoder(self, state: SlotState, rows: Sequence[DecodeRow], steps: int) -> Decoder:
        """Decode the first slots of a text state, at most `steps` times.

        The state may run ahead of the tokens that were returned: use it for nothing else afterwards.
        """


class ServingBackend(Backend, Protocol):
    """A backend that also keeps many sequences at once, for the scheduler."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of host memory that the weights take once they are used."""

    def open_slots(self, slots: int, max_context: int, vocab_limit: int) -> Slots:
        """Slots for that many sequences of up to `max_context` tokens; ids from `vocab_limit` on are never drawn.

        Raises:
            ArtifactError: the artifact's engine was built for fewer.
        """
