"""Decoding that does not leave the GPU: engine and sampler in one captured graph, tokens fed back on the device."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from deltart.plugins import sampler
from deltart.plugins.sampler.inputs import PROMPT_BIT, Settings, Shape, pack
from deltart.plugins.sampler.launch import sample, workspace
from deltart.runtime.backends.gpu.cuda import Cuda, Graph, captured
from deltart.runtime.backends.gpu.weight_stream import align
from deltart.runtime.backends.slots import Row
from deltart.runtime.sampling.sampler import Sampler

SOURCE = Path(str(sampler.__file__)).parent / "kernel.cu"
RING = 4  # steps whose tokens are kept; a row's token of step n is at n % RING


class Step(Protocol):
    """One decode step of the engine on all of its slots, over one state."""

    def bind(self, at: Mapping[str, int]) -> None:
        """Point the engine at these inputs and outputs."""

    def enqueue(self) -> None:
        """Run once on the stream, and bring the hidden states to the host."""

    def capturable(self) -> bool:
        """Whether that may be captured in a CUDA graph."""

    def hidden(self) -> np.ndarray:
        """f32 [slots, H]: the hidden states of the last run."""


class DeviceLoop:
    """Decode steps of all slots, one CUDA graph launch each, whatever the rows ask for.

    A row is data on the device: writing it or taking it out changes nothing that the captured graph depends on.

    Args:
        step: the engine.
        shape: slots, width of the logits, and ids that may be drawn.

    Attributes:
        live: slots that take part.
        graphs: the captured graph, once there is one.
    """

    def __init__(self, cuda: Cuda, step: Step, shape: Shape) -> None:
        self._cuda, self._step, self._shape = cuda, step, shape
        self.live: set[int] = set()
        self.graphs: list[Graph] = []
        self._warm = False
        self._run = cuda.kernels(SOURCE)
        self._mirror = _idle(shape)
        sizes = {name: array.nbytes for name, array in self._mirror.items()}
        offsets, end = _offsets({**sizes, **_scratch(shape)})
        self._base = cuda.allocate(end)
        self._staging = cuda.pinned(max(4 * shape.vocabulary, 256))
        history = cuda.pinned(4 * RING * shape.rows)
        cuda.zero(self._base, end)
        self._at = {name: self._base + offset for name, offset in offsets.items()} | {"history": history.ctypes.data}
        self._history = history.view(np.int32).reshape(RING, shape.rows)
        self._launches = sample(shape, self._at, ring=RING)
        weakref.finalize(self, _release, cuda, self._base, (history, self._staging), self.graphs)

    def set(self, slot: int, row: Row) -> None:
        """Let a row take part in the steps that follow: its one pending token is fed next."""
        settings = pack([_settings(row.sampler)])
        for name, array in settings.items():
            self._write(name, slot, array[0])
        self._write("input_ids", slot, row.pending[0])
        self._write("past_len", slot, row.past)
        for axis in range(3):
            self._write("position_ids", axis * self._shape.rows + slot, row.past + row.rope_shift)
        self._write("n_tokens", slot, 1)
        self._write("n_commit", slot, 1)
        if _penalised(row.sampler):
            seen = np.zeros(self._shape.vocabulary, np.int32)
            seen[: len(row.sampler.counts)] = row.sampler.counts + PROMPT_BIT * row.sampler.seen.astype(np.int32)
            self._copy(self._at["counts"] + slot * seen.nbytes, seen)
        self.live.add(slot)

    def clear(self, slot: int) -> None:
        """Take a row out: its slot is idle in the steps that follow."""
        self._write("n_tokens", slot, 0)
        self._write("n_commit", slot, 0)
        self.live.discard(slot)

    def step(self, rows: Mapping[int, Row]) -> tuple[dict[int, int], np.ndarray]:
        """One step: the token drawn for each of `rows`, all that are live (negative where no logit was finite), and the
        hidden states f32 [slots, H] of the tokens that were fed."""
        assert rows.keys() == self.live
        self._advance()
        self._cuda.wait(self._cuda.record())
        return {s: int(self._history[row.sampler.step % RING, s]) for s, row in rows.items()}, self._step.hidden()

    def keep_only(self, slots: Collection[int]) -> None:
        """Take out every other row."""
        for slot in self.live - set(slots):
            self.clear(slot)

    def _advance(self) -> None:
        """Enqueue a step: the first plainly, later ones as a graph captured at the second."""
        if not self.graphs:
            self._step.bind(self._at)  # other calls of the plan may have bound it elsewhere since
            if self._warm and self._step.capturable():
                self.graphs.append(captured(self._cuda, self._enqueue))
        if self.graphs:
            self._cuda.launch(self.graphs[0])
        else:
            self._enqueue()
        self._warm = True

    def _enqueue(self) -> None:
        self._step.enqueue()
        self._run(self._launches)

    def _write(self, name: str, index: int, value: object) -> None:
        """Set entry `index` of an input, counted over its first axis."""
        array = self._mirror[name]
        array[index] = value
        self._copy(self._at[name] + index * array[0].nbytes, np.ascontiguousarray(array[index : index + 1]))

    def _copy(self, address: int, source: np.ndarray) -> None:
        piece = self._staging[: source.nbytes]
        piece[:] = source.reshape(-1).view(np.uint8)
        self._cuda.to_device(address, piece)
        self._cuda.synchronize()  # the staging memory is used again at once


def served_on_device(row: Row) -> bool:
    """Whether the device's sampler has a place for all that a row asks for, and it feeds one token."""
    params = row.sampler.params
    held_back = params.logit_bias or row.sampler.step < params.min_tokens
    return len(row.pending) == 1 and not (row.drafts or row.constraint or held_back) and row.logprobs is None


def _idle(shape: Shape) -> dict[str, np.ndarray]:
    """The engine's inputs and the sampler's where no row takes part."""
    none = np.zeros(shape.rows, np.int32)
    return pack([Settings()] * shape.rows) | {
        "input_ids": np.zeros(shape.rows, np.int64),
        "position_ids": np.zeros(3 * shape.rows, np.int64),
        "past_len": none.copy(),
        "n_tokens": none.copy(),
        "n_commit": none.copy(),
    }


def _settings(given: Sampler) -> Settings:
    params = given.params
    return Settings(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        seed=given.seed,
        step=given.step,
    )


def _penalised(given: Sampler) -> bool:
    params = given.params
    return params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1


def _scratch(shape: Shape) -> dict[str, int]:
    """Bytes of what the engine and the sampler write, and of what stays zero."""
    row = shape.rows * shape.vocabulary
    return {"logits": 4 * row, "counts": 4 * row, "token": 4 * shape.rows, "logit_index": 8 * shape.rows} | workspace(
        shape
    )


def _offsets(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Aligned places of arrays of these bytes in one block, and the block's size."""
    offsets, end = {}, 0
    for name, nbytes in sizes.items():
        offsets[name] = end
        end += align(nbytes)
    return offsets, end


def _release(cuda: Cuda, base: int, pinned: tuple[np.ndarray, ...], graphs: list[Graph]) -> None:
    cuda.synchronize()
    for graph in graphs:
        cuda.discard(graph)
    cuda.free(base)
    for array in pinned:
        cuda.unpin(array)
