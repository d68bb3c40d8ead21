"""Slots of a GPU engine: drawn on the device where its sampler serves every row, else on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deltart.errors import GenerationError
from deltart.runtime.backends.gpu.buffers import GpuBuffers
from deltart.runtime.backends.gpu.decode import DeviceLoop, served_on_device
from deltart.runtime.backends.host_slots import HostSlots
from deltart.runtime.backends.mtp_drafts import MtpDrafts
from deltart.runtime.backends.slots import Drawn, Limits, Row, Snapshot


class GpuSlots(HostSlots):
    """`Slots` of a GPU engine; see there.

    Args:
        text, mtp, limits: as HostSlots takes them.
        loop: decode steps over the states of `text`.
    """

    def __init__(self, text: GpuBuffers, mtp: MtpDrafts | None, limits: Limits, loop: DeviceLoop) -> None:
        super().__init__(text, mtp, limits)
        self._loop = loop
        self._current: set[int] = set()  # slots whose row on the device is as it is here

    def step(self) -> Mapping[int, Drawn]:
        """See Slots."""
        if self._rows and all(served_on_device(row) for row in self._rows.values()):
            return self._step_on_device()
        self._current.clear()
        return super().step()

    def retire(self, slot: int) -> Row:
        """See Slots."""
        self._current.discard(slot)
        return super().retire(slot)

    def settle(self, slot: int, leave: int = 0) -> None:
        """See Slots."""
        self._current.discard(slot)
        super().settle(slot, leave)

    def load(self, slot: int, snapshot: Snapshot) -> None:
        """See Slots."""
        self._current.discard(slot)
        super().load(slot, snapshot)

    def _step_on_device(self) -> dict[int, Drawn]:
        self._loop.keep_only(self._rows)
        for slot, row in self._rows.items():
            if slot not in self._current:
                self._loop.set(slot, row)
        self._current = set(self._rows)
        tokens, hidden = self._loop.step(self._rows)
        return {slot: self._drawn(slot, row, tokens[slot], hidden[slot]) for slot, row in self._rows.items()}

    def _drawn(self, slot: int, row: Row, token: int, hidden: np.ndarray) -> Drawn:
        if token < 0:
            error = GenerationError("no finite largest logit", "a finite maximum", "check the model's output")
            return Drawn((), error=error)
        row.sampler.accept(token)
        if self._mtp:
            row.unread.append((token, hidden.copy()))
        self._advance(slot, row, 1, hidden)
        row.pending = [token]
        return Drawn((token,))
