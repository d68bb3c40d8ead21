"""Brings weights from safetensors files to the device: large reads into pinned buffers, copied during the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from deltart.manifest import WeightEntry
from deltart.runtime.backends.gpu.cuda import Cuda, Event

ALIGNMENT = 256  # bytes, what TensorRT asks of a binding
BUFFER_BYTES = 64 << 20
BUFFERS = 3
GAP_BYTES = 1 << 20  # unused bytes in a file that are cheaper to read over than to skip


@dataclass(frozen=True)
class Copy:
    """Part of a tensor: `nbytes` at `start` of the read, to `offset` of the device block."""

    start: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Read:
    """One read of a file, no larger than a buffer, and the copies it feeds."""

    file: str
    begin: int
    nbytes: int
    copies: list[Copy]


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in one device block of `nbytes`."""

    offsets: Mapping[str, int]
    nbytes: int


def layout(tensors: Mapping[str, WeightEntry]) -> Layout:
    """Tensors one after the other, in file order, each aligned."""
    offsets, end = {}, 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].file, item[1].offset)):
        offsets[name] = end
        end += align(entry.nbytes)
    return Layout(offsets, end)


def align(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def reads(tensors: Mapping[str, WeightEntry], place: Layout, buffer_bytes: int = BUFFER_BYTES) -> Iterator[Read]:
    """Every byte of `tensors` once, file by file and in order, in reads of at most `buffer_bytes`."""
    pending: list[Copy] = []
    file, begin, end = "", 0, 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].file, item[1].offset)):
        done = 0
        while done < entry.nbytes:
            at = entry.offset + done
            fresh = not pending or file != entry.file or at - end > GAP_BYTES or at - begin >= buffer_bytes
            if fresh:
                if pending:
                    yield Read(file, begin, end - begin, pending)
                pending, file, begin = [], entry.file, at
            count = min(entry.nbytes - done, buffer_bytes - (at - begin))
            pending.append(Copy(at - begin, place.offsets[name] + done, count))
            done, end = done + count, at + count
    if pending:
        yield Read(file, begin, end - begin, pending)


def stream_weights(
    cuda: Cuda, paths: Mapping[str, Path], plan: Iterable[Read], base: int, buffer_bytes: int = BUFFER_BYTES,
    landed: Callable[[Read], None] = lambda read: None,
) -> None:  # fmt: skip
    """Carry out `plan` into the device block at `base`. Host memory: BUFFERS pinned buffers, nothing else.

    Args:
        paths: the weight files by name.
        buffer_bytes: at least the size of the largest read.
        landed: enqueues what is to be done with a read on the device, before the next one's bytes get there.

    Raises:
        OSError: a file can't be read to its end.
    """
    buffers: list[np.ndarray] = []
    events: list[Event] = []
    with ExitStack() as files:
        opened: dict[str, BinaryIO] = {}
        for turn, read in enumerate(plan):
            if turn < BUFFERS:
                buffers.append(cuda.pinned(buffer_bytes))
            else:
                cuda.wait(events[turn - BUFFERS])
            if read.file not in opened:
                opened[read.file] = files.enter_context(paths[read.file].open("rb", buffering=0))
            buffer = buffers[turn % BUFFERS]
            _fill(opened[read.file], read.begin, buffer[: read.nbytes].data)
            for copy in read.copies:
                cuda.to_device(base + copy.offset, buffer[copy.start : copy.start + copy.nbytes])
            landed(read)
            events.append(cuda.record())
        for event in events[-BUFFERS:]:
            cuda.wait(event)
    for buffer in buffers:
        cuda.unpin(buffer)


def _fill(file: BinaryIO, begin: int, view: memoryview) -> None:
    file.seek(begin)
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"{file.name} ends at byte {begin + filled}")
        filled += count
