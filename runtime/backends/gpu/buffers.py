"""Slots of a GPU engine whose tokens are drawn on the host: calls of its plans over all slots at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deltart.runtime.backends.buffers import Range
from deltart.runtime.backends.gpu.engine_manifest import Binding

if TYPE_CHECKING:
    from deltart.runtime.backends.gpu.backend import TensorRtBackend


STAGING_BYTES = 1 << 20  # of pinned memory between the device and a snapshot


class GpuBuffers:
    """`SlotBuffers` over the device's memory. A plan runs all slots in every call; idle ones have no tokens."""

    ragged, holds = True, False

    def __init__(self, backend: TensorRtBackend, graph: str, slots: int, capacity: int) -> None:
        self._backend, self._graph, self._slots = backend, graph, slots
        self.state = backend.new_state(graph, slots, capacity)
        self._staging = backend.cuda.pinned(STAGING_BYTES)
        self._bindings = {binding.name: binding for binding in backend.states_of(graph)}
        self.caches = [name for name, binding in self._bindings.items() if "capacity" in binding.axes]
        self._recurrent = [name for name in self._bindings if name not in self.caches]

    @property
    def slot_bytes(self) -> int:
        """See SlotBuffers."""
        return sum(self._bindings[name].nbytes({"B": 1}) for name in self._recurrent)

    @property
    def token_bytes(self) -> int:
        """See SlotBuffers."""
        return sum(self._bindings[name].nbytes({"B": 1, "capacity": 1}) for name in self.caches)

    def run(
        self, rows: Range, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], hold: bool = False
    ) -> list[np.ndarray]:
        """See SlotBuffers."""
        assert not hold
        whole = {name: self._all_slots(name, rows, array) for name, array in inputs.items()}
        return [array[rows[0] : rows[1]] for array in self._backend.run(self._graph, self.state, whole, list(outputs))]

    def keep(self) -> None:
        """See SlotBuffers; nothing is ever held."""

    def clear(self, slot: int) -> None:
        """See SlotBuffers."""
        for name in self._recurrent:
            binding = self._bindings[name]
            self._backend.cuda.zero(self.state.at(binding, slot), binding.nbytes({"B": 1}))

    def read_cache(self, name: str, slot: int, first: int, last: int) -> np.ndarray:
        """See SlotBuffers."""
        return np.stack([self._copy_out(self._bindings[name], at) for at in self._heads(name, slot, first, last)])

    def write_cache(self, name: str, slot: int, first: int, rows: np.ndarray) -> None:
        """See SlotBuffers."""
        for (address, _), head in zip(self._heads(name, slot, first, first + rows.shape[1]), rows, strict=True):
            self._copy_in(address, head)

    def read_recurrent(self, slot: int) -> Mapping[str, np.ndarray]:
        """See SlotBuffers."""
        found = {}
        for name in self._recurrent:
            binding = self._bindings[name]
            found[name] = self._copy_out(binding, (self.state.at(binding, slot), binding.shape({"B": 1})[1:]))
        return found

    def write_recurrent(self, slot: int, states: Mapping[str, np.ndarray]) -> None:
        """See SlotBuffers."""
        for name, array in states.items():
            self._copy_in(self.state.at(self._bindings[name], slot), array)

    def free(self, slot: int) -> None:
        """See SlotBuffers; the device's memory is one block for all slots."""

    def close(self) -> None:
        """See SlotBuffers; the states' block goes with the last reference to it."""
        self._backend.cuda.unpin(self._staging)
        del self.state

    def _all_slots(self, name: str, rows: Range, array: np.ndarray) -> np.ndarray:
        """An input with a row for every slot; the others have no tokens."""
        if name == "vision_embeds":  # of all rows
            return array
        axis = 1 if name == "position_ids" else 0
        padding = [(0, 0)] * array.ndim
        padding[axis] = (rows[0], self._slots - rows[1])
        return np.pad(array, padding, constant_values=-1 if name == "vision_index" else 0)

    def _heads(self, name: str, slot: int, first: int, last: int) -> list[tuple[int, tuple[int, ...]]]:
        """Address and shape of rows [first, last) of each head of a slot's cache."""
        binding = self._bindings[name]
        _, heads, capacity, width = binding.shape({**self.state.sizes, "B": 1})
        row = binding.nbytes({"B": 1, "capacity": 1}) // heads
        base = self.state.at(binding, slot)
        return [(base + (head * capacity + first) * row, (last - first, width)) for head in range(heads)]

    def _copy_out(self, binding: Binding, place: tuple[int, tuple[int, ...]]) -> np.ndarray:
        address, shape = place
        target = np.empty(shape, binding.numpy)
        flat, cuda = target.reshape(-1).view(np.uint8), self._backend.cuda
        for begin in range(0, flat.nbytes, STAGING_BYTES):
            piece = self._staging[: min(STAGING_BYTES, flat.nbytes - begin)]
            cuda.to_host(piece, address + begin)
            cuda.synchronize()
            flat[begin : begin + piece.nbytes] = piece
        return target

    def _copy_in(self, address: int, source: np.ndarray) -> None:
        flat, cuda = np.ascontiguousarray(source).reshape(-1).view(np.uint8), self._backend.cuda
        for begin in range(0, flat.nbytes, STAGING_BYTES):
            piece = self._staging[: min(STAGING_BYTES, flat.nbytes - begin)]
            piece[:] = flat[begin : begin + piece.nbytes]
            cuda.to_device(address + begin, piece)
            cuda.synchronize()
