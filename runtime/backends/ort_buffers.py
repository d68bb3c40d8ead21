"""The state of all slots in host memory, and ONNX Runtime's calls over ranges of slots.

Every state tensor is one array with a row a slot; a call binds a view of some rows, so no state is copied for it. One
that may not be written over what is read has two such arrays, and each slot's state lies in one of them by turns.
Caches are reserved for the whole capacity and cost memory only where they were written.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from deltart.manifest import GraphEntry, StateEntry
from deltart.runtime.backends.buffers import Range
from deltart.runtime.backends.inputs import completed

MOST_BOUND = 14  # tokens of a row in a call that is bound once for all; longer ones are few, and large


@dataclass(frozen=True)
class _Call:
    """A binding of one graph to some rows.

    Attributes:
        apart: states that go where they count only once the call is taken.
        inputs, outputs: arrays that every such call reads and writes; none where they are bound anew each time.
    """

    binding: ort.IOBinding
    apart: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[np.ndarray]


class OrtBuffers:
    """`SlotBuffers` in host memory, for `slots` sequences of up to `capacity` tokens.

    Args:
        session: the graph's session.
        entry: the graph.
        target: the session's target, which says which states may be updated in place.
    """

    ragged, holds = False, True  # attention serves one row of many tokens or many of one, but not many of many

    def __init__(
        self, session: ort.InferenceSession, entry: GraphEntry, target: str, slots: int, capacity: int
    ) -> None:
        self._session, self._entry = session, entry
        in_place = {state.name for state in entry.states if target in state.in_place}
        self._maps: list[mmap.mmap] = []
        sizes = {"B": slots, "capacity": capacity}
        self._cached = {s.name: self._reserve(s, sizes) for s in entry.states if "capacity" in s.axes}  # [slots, ...]
        self._recurrent = {
            s.name: [np.zeros(s.shape(sizes), s.dtype) for _ in range(1 if s.name in in_place else 2)]
            for s in entry.states
            if s.name not in self._cached
        }  # [slots, ...] each, a second where a call must not write over what it reads
        self._side = [0] * slots  # which of two holds a slot's states
        self._calls: dict[tuple[Any, ...], _Call] = {}
        self._scratch: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}  # by tensor and shape
        self._held: tuple[Range, _Call] | None = None

    def run(
        self, rows: Range, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], hold: bool = False
    ) -> list[np.ndarray]:
        """See SlotBuffers."""
        inputs = completed(self._entry.inputs, inputs)
        call = self._call(rows, hold, tuple(outputs), inputs)
        if call.outputs:
            for name, array in call.inputs.items():
                array[...] = inputs[name]
        else:
            for name, array in inputs.items():
                call.binding.bind_cpu_input(name, array)
            for name in outputs:
                call.binding.bind_output(name)
        self._session.run_with_iobinding(call.binding)
        found = list(call.outputs) or [value.numpy() for value in call.binding.get_outputs()[-len(outputs) :]]
        if hold:
            self._held = (rows, call)
        else:
            self._take(rows, call)
        return found

    def keep(self) -> None:
        """See SlotBuffers."""
        assert self._held is not None
        self._take(*self._held)
        self._held = None

    @property
    def slot_bytes(self) -> int:
        """See SlotBuffers."""
        return sum(arrays[0][0].nbytes for arrays in self._recurrent.values())

    @property
    def token_bytes(self) -> int:
        """See SlotBuffers."""
        return sum(array[0, :, 0].nbytes for array in self._cached.values())

    @property
    def caches(self) -> Sequence[str]:
        """See SlotBuffers."""
        return list(self._cached)

    def clear(self, slot: int) -> None:
        """See SlotBuffers."""
        for name in self._recurrent:
            self._state(name, slot)[...] = 0

    def read_cache(self, name: str, slot: int, first: int, last: int) -> np.ndarray:
        """See SlotBuffers."""
        rows: np.ndarray = self._cached[name][slot, :, first:last].copy()
        return rows

    def write_cache(self, name: str, slot: int, first: int, rows: np.ndarray) -> None:
        """See SlotBuffers."""
        self._cached[name][slot, :, first : first + rows.shape[1]] = rows

    def read_recurrent(self, slot: int) -> Mapping[str, np.ndarray]:
        """See SlotBuffers."""
        return {name: self._state(name, slot).copy() for name in self._recurrent}

    def write_recurrent(self, slot: int, states: Mapping[str, np.ndarray]) -> None:
        """See SlotBuffers."""
        for name, array in states.items():
            self._state(name, slot)[...] = array

    def free(self, slot: int) -> None:
        """See SlotBuffers: the pages of the slot's caches go back to the system."""
        for memory, array in zip(self._maps, self._cached.values(), strict=True):
            begin, end = (slot * array[0].nbytes, (slot + 1) * array[0].nbytes)
            first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """See SlotBuffers."""
        self._calls.clear()
        self._scratch.clear()
        self._cached.clear()
        self._recurrent.clear()
        self._maps.clear()

    def _reserve(self, state: StateEntry, sizes: Mapping[str, int]) -> np.ndarray:
        shape, dtype = state.shape(sizes), np.dtype(state.dtype)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, int(np.prod(shape)) * dtype.itemsize, flags)
        self._maps.append(memory)
        return np.frombuffer(memory, dtype).reshape(shape)

    def _call(self, rows: Range, hold: bool, outputs: tuple[str, ...], inputs: Mapping[str, np.ndarray]) -> _Call:
        side = self._aligned(rows)
        fixed = inputs["input_ids"].shape[1] <= MOST_BOUND
        key = (rows, side, hold, outputs, *(array.shape for array in inputs.values() if fixed))
        if key not in self._calls:
            self._calls[key] = self._bind(rows, side, hold, outputs, inputs if fixed else {})
        return self._calls[key]

    def _bind(
        self, rows: Range, side: int, hold: bool, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]
    ) -> _Call:
        """States bound, outputs after them. With `inputs`, arrays like them are bound for good, and so are outputs."""
        binding, apart, bound = self._session.io_binding(), dict[str, np.ndarray](), slice(*rows)
        for state in self._entry.states:
            arrays = [self._cached[state.name]] if state.name in self._cached else self._recurrent[state.name]
            taken = arrays[side % len(arrays)][bound]
            given = arrays[(side + 1) % len(arrays)][bound]
            if hold and len(arrays) == 1 and state.name in self._recurrent:
                given = apart[state.name] = self._shared(state.name, taken.shape, taken.dtype)
            binding.bind_ortvalue_input(state.name, ort.OrtValue.ortvalue_from_numpy(taken))  # shares memory
            binding.bind_ortvalue_output(state.output, ort.OrtValue.ortvalue_from_numpy(given))
        if not inputs:
            return _Call(binding, apart, {}, [])
        fed = {name: self._shared(name, array.shape, array.dtype) for name, array in inputs.items()}
        for name, array in fed.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        (slots, tokens), logits = inputs["input_ids"].shape, inputs["logit_index"].shape[1]
        entries = {entry.name: entry for entry in self._entry.outputs}
        shapes = {name: entries[name].shape({"B": slots, "T": tokens, "L": logits}) for name in outputs}
        found = [self._shared(name, shape, np.dtype(entries[name].dtype)) for name, shape in shapes.items()]
        for name, array in zip(outputs, found, strict=True):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return _Call(binding, apart, fed, found)

    def _shared(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        return self._scratch.setdefault((name, shape), np.empty(shape, dtype))

    def _take(self, rows: Range, call: _Call) -> None:
        for name, array in call.apart.items():
            self._recurrent[name][0][slice(*rows)] = array
        self._side[slice(*rows)] = [1 - self._side[rows[0]]] * (rows[1] - rows[0])

    def _aligned(self, rows: Range) -> int:
        """Which of two arrays holds the states of all `rows`: those that lie in the other one are brought over."""
        side = self._side[rows[0]]
        for slot in range(*rows):
            if self._side[slot] != side:
                for pair in (arrays for arrays in self._recurrent.values() if len(arrays) == 2):
                    pair[side][slot] = pair[1 - side][slot]
                self._side[slot] = side
        return side

    def _state(self, name: str, slot: int) -> np.ndarray:
        arrays = self._recurrent[name]
        state: np.ndarray = arrays[self._side[slot] % len(arrays)][slot]
        return state
