"""Decoding that never leaves the GPU: engine and sampler captured in one CUDA graph, tokens fed back on the device."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deltart.errors import GenerationError
from deltart.plugins import sampler
from deltart.plugins.sampler.inputs import PROMPT_BIT, Settings, Shape, pack
from deltart.plugins.sampler.launch import sample, workspace
from deltart.runtime.backends.base import DecodeRow
from deltart.runtime.backends.gpu.cuda import Cuda, Graph, captured
from deltart.runtime.backends.gpu.weight_stream import align
from deltart.runtime.backends.host_decode import check_steps
from deltart.runtime.sampling.sampler import Sampler

SOURCE = Path(str(sampler.__file__)).parent / "kernel.cu"
AHEAD = 2  # steps on their way while the host handles a token
RING = 2 * AHEAD  # steps whose tokens are kept


class Step(Protocol):
    """One decode step of the engine on all of its slots, over one state."""

    def bind(self, at: Mapping[str, int]) -> None:
        """Point the engine at these inputs and outputs."""

    def enqueue(self) -> None:
        """Run once on the stream."""

    def capturable(self) -> bool:
        """Whether that may be captured in a CUDA graph."""


class DeviceDecoder:
    """A `Decoder` whose steps are one CUDA graph launch each; up to AHEAD of them run before a token is fetched.

    Args:
        slots: rows of the engine; those beyond `rows` stay idle.
        vocabulary: width of the logits.
    """

    def __init__(
        self, cuda: Cuda, step: Step, slots: int, vocabulary: int, rows: Sequence[DecodeRow], steps: int
    ) -> None:
        self._cuda, self._step, self._rows, self._left, self._unqueued = cuda, step, list(rows), steps, steps
        self._shape = Shape(slots, vocabulary, rows[0].sampler.vocab_limit)
        self._events: deque[Any] = deque()
        self._graph: list[Graph] = []
        self._warm = False
        self._run = cuda.kernels(SOURCE)
        self._at, base = _place(cuda, _arrays(self._shape, rows), _scratch(self._shape))
        history = cuda.pinned(4 * RING * slots)
        self._history = history.view(np.int32).reshape(RING, slots)
        self._at["history"] = history.ctypes.data
        self._launches = sample(self._shape, self._at, ring=RING)
        weakref.finalize(self, _release, cuda, base, history, self._graph)

    def step(self) -> list[int]:
        """See Decoder."""
        check_steps(self._left)
        while self._unqueued and len(self._events) < AHEAD:
            self._advance()
            self._events.append(self._cuda.record())
            self._unqueued -= 1
        self._cuda.wait(self._events.popleft())
        self._left -= 1
        return [self._accept(index, row) for index, row in enumerate(self._rows)]

    def _accept(self, index: int, row: DecodeRow) -> int:
        token = int(self._history[row.sampler.step % RING, index])
        if token < 0:
            raise GenerationError(
                f"row {index} has no finite largest logit", "a finite maximum", "check the model's output"
            )
        row.sampler.accept(token)
        row.token, row.past = token, row.past + 1
        return token

    def _advance(self) -> None:
        """Enqueue a step: the first plainly, later ones as a graph captured at the second."""
        if not self._graph and self._warm and self._step.capturable():
            self._graph.append(captured(self._cuda, self._enqueue))
        if self._graph:
            self._cuda.launch(self._graph[0])
        else:
            self._enqueue()
        self._warm = True

    def _enqueue(self) -> None:
        self._step.bind(self._at)  # other calls of the plan may have bound it elsewhere since
        self._step.enqueue()
        self._run(self._launches)


def _arrays(shape: Shape, rows: Sequence[DecodeRow]) -> dict[str, np.ndarray]:
    """The engine's inputs and the sampler's, for the first step; idle rows are zero."""
    idle = shape.rows - len(rows)
    past = np.array([row.past for row in rows] + [0] * idle, np.int32)
    counts = np.array([1] * len(rows) + [0] * idle, np.int32)
    arrays = pack([_settings(row.sampler) for row in rows] + [Settings()] * idle)
    arrays |= {
        "input_ids": np.array([row.token for row in rows] + [0] * idle, np.int64),
        "position_ids": np.tile(past.astype(np.int64), (3, 1)),
        "past_len": past,
        "n_tokens": counts,
        "n_commit": counts,
        "logit_index": np.zeros(shape.rows, np.int64),
    }
    if any(_penalised(row.sampler) for row in rows):
        arrays["counts"] = np.zeros((shape.rows, shape.vocabulary), np.int32)
        for index, row in enumerate(rows):
            seen = row.sampler.counts + PROMPT_BIT * row.sampler.seen.astype(np.int32)
            arrays["counts"][index, : len(seen)] = seen
    return arrays


def _settings(given: Sampler) -> Settings:
    params = given.params
    if params.logit_bias or params.min_tokens > given.step:
        raise GenerationError(
            "a request with logit_bias or min_tokens on a GPU backend",
            "neither, for the device's sampler has no place for them",
            "leave them out, or run the artifact on ONNX Runtime",
        )
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
    """Bytes of what the engine and the sampler write."""
    return {"logits": 4 * shape.rows * shape.vocabulary, "token": 4 * shape.rows, **workspace(shape)}


def _place(cuda: Cuda, arrays: Mapping[str, np.ndarray], scratch: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Addresses by name of the arrays and the zeroed scratch memory on the device, and the block that holds them."""
    offsets, end = {}, 0
    sizes = {name: array.nbytes for name, array in arrays.items()}
    for name, nbytes in {**sizes, **scratch}.items():
        offsets[name] = end
        end += align(nbytes)
    base, staging = cuda.allocate(end), cuda.pinned(sum(align(nbytes) for nbytes in sizes.values()))
    for name, array in arrays.items():
        staging[offsets[name] : offsets[name] + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    cuda.zero(base, end)
    cuda.to_device(base, staging)
    cuda.synchronize()
    cuda.unpin(staging)
    return {name: base + offset for name, offset in offsets.items()}, base


def _release(cuda: Cuda, base: int, history: np.ndarray, graphs: list[Graph]) -> None:
    cuda.synchronize()
    for graph in graphs:
        cuda.discard(graph)
    cuda.free(base)
    cuda.unpin(history)
