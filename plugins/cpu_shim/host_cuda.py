"""A GPU made of host memory: the `Cuda` seam of the runtime without a driver, kernels on the shim."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.launch import Launch


@dataclass
class HostLimits:
    """What the host's kernels are launched as if for: the least shared memory of a GPU with FP8 arithmetic."""

    shared_limit: int = 99 << 10
    capability: int = 89
    multiprocessors: int = 128


class HostCuda:
    """`Cuda` over host memory. Freed memory is filled with ones (NaN), so that a use of it is seen."""

    def __init__(self, limits: HostLimits | None = None) -> None:
        self.limits = limits or HostLimits()
        self.blocks: dict[int, np.ndarray] = {}
        self.pins: list[np.ndarray] = []
        self.copied = 0
        self.launched = 0
        self.recording: list[Callable[[], None]] | None = None
        self.stream = self
        self.held: list[tuple[int, int]] = []  # (address, bytes) that kernels may touch only behind their wait

    def allocate(self, nbytes: int) -> int:
        block = np.full(nbytes + 256, 0xFF, np.uint8)
        address = -(-block.ctypes.data // 256) * 256
        self.blocks[address] = block
        return address

    def free(self, address: int) -> None:
        self.blocks.pop(address)[:] = 0xFF

    def pinned(self, nbytes: int) -> np.ndarray:
        self.pins.append(np.full(nbytes, 0xFF, np.uint8))
        return self.pins[-1]

    def unpin(self, array: np.ndarray) -> None:
        self.pins = [pin for pin in self.pins if pin is not array]

    def do(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def zero(self, address: int, nbytes: int) -> None:
        self.do(lambda: memory(address, nbytes).fill(0))

    def to_device(self, address: int, source: np.ndarray) -> None:
        assert any(np.shares_memory(source, pin) for pin in self.pins), "the source is not pinned"
        self.copied += source.nbytes
        self.do(lambda: np.copyto(memory(address, source.nbytes), source))

    def to_host(self, target: np.ndarray, address: int) -> None:
        assert any(np.shares_memory(target, pin) for pin in self.pins), "the target is not pinned"
        self.do(lambda: np.copyto(target, memory(address, target.nbytes)))

    def record(self) -> object:
        return object()

    def wait(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        assert self.recording is None, "synchronized while capturing"

    def begin_capture(self) -> None:
        assert self.recording is None
        self.recording = []

    def end_capture(self) -> list[Callable[[], None]]:
        assert self.recording is not None
        graph, self.recording = self.recording, None
        return graph

    def launch(self, graph: list[Callable[[], None]]) -> None:
        self.launched += 1
        for work in graph:
            work()

    def discard(self, graph: list[Callable[[], None]]) -> None:
        graph.clear()

    def kernels(self, source: Path) -> Callable[[list[Launch]], None]:
        module = compile_cpu(source)

        def run(launches: list[Launch]) -> None:
            module.hold(self.held)
            module.run(launches)

        return lambda launches: self.do(lambda: run(launches))


def memory(address: int, nbytes: int) -> np.ndarray:
    """Bytes at a host address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)) if nbytes else np.empty(0, np.uint8)
