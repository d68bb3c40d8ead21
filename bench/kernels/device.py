"""Where the benchmark runs: an NVIDIA GPU, or the CPU shim for a dry run of the same code."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from deltart.plugins import loader
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.launch import Launch
from deltart.plugins.toolchain import compile_for

Call = Callable[[int], None]  # enqueues one call of what is timed on the given stream


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median over the replays, and the range of the middle half of them."""

    us: float
    spread: float


class Buffers(Protocol):
    """Arrays placed on a device."""

    at: dict[str, int]

    def read(self, name: str) -> np.ndarray:
        """The array's present content, on the host."""


class Device(Protocol):
    """What the sections need of a device."""

    name: str
    shared_limit: int
    capability: int  # compute capability times ten
    multiprocessors: int

    def module(self, source: Path) -> Callable[[list[Launch], int], None]:
        """Compiles a kernel source; returns run(launches, stream)."""

    def place(self, arrays: dict[str, np.ndarray]) -> Buffers:
        """Copies arrays to the device."""

    def copies(self, call_bytes: int, limit: int = 32) -> int:
        """How many sets of buffers to rotate over so that no call finds its data in the cache."""

    def synchronize(self) -> None:
        """Waits for the work that was enqueued, and raises for an error in it."""

    def usable(self) -> bool:
        """Whether work still runs; an error on a GPU can spoil everything that follows in the process."""

    def time(self, calls: list[Call]) -> Timing:
        """Times one pass over `calls`, per call."""


class HostBuffers:
    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {name: array.copy() for name, array in arrays.items()}
        self.at = {name: array.ctypes.data for name, array in self.arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


class Host:
    """The CPU shim. Its times say nothing about a GPU."""

    name = "CPU shim (dry run: times mean nothing)"
    shared_limit = 227 << 10
    capability = 90  # so that Hopper's kernels are in the dry run
    multiprocessors = 3

    def module(self, source: Path) -> Callable[[list[Launch], int], None]:
        kernels = compile_cpu(source)
        return lambda launches, stream: kernels.run(launches)

    def place(self, arrays: dict[str, np.ndarray]) -> HostBuffers:
        return HostBuffers(arrays)

    def copies(self, call_bytes: int, limit: int = 32) -> int:
        return 1

    def synchronize(self) -> None:
        pass

    def usable(self) -> bool:
        return True

    def time(self, calls: list[Call]) -> Timing:
        start = time.perf_counter()
        for call in calls:
            call(0)
        return Timing((time.perf_counter() - start) * 1e6 / len(calls), 0.0)


TORCH_TYPES = {name: name for name in ("float32", "bfloat16", "int32", "int64", "uint8", "int8")}
TORCH_TYPES["float8_e4m3fn"] = "uint8"  # a byte an element, which the rivals view as they need it


class CudaBuffers:
    def __init__(self, torch: Any, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        self.tensors = {}
        for name, array in arrays.items():
            self.tensors[name] = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).cuda()
            if array.dtype.name in TORCH_TYPES:  # the others are bytes to torch
                own = getattr(torch, TORCH_TYPES[array.dtype.name])
                self.tensors[name] = self.tensors[name].view(own).view(array.shape)
        self.at = {name: tensor.data_ptr() for name, tensor in self.tensors.items()}
        self.torch = torch

    def read(self, name: str) -> np.ndarray:
        dtype, shape = self.arrays[name]
        flat = self.tensors[name].contiguous().view(-1).view(self.torch.uint8).cpu().numpy()
        return flat.view(dtype).reshape(shape)


class Cuda:
    """The current GPU: kernels through the CUDA driver, memory and graphs through torch."""

    def __init__(self) -> None:
        import torch

        torch.cuda.init()
        self.torch, self.driver = torch, loader.GpuDevice()
        properties = torch.cuda.get_device_properties(0)
        self.name, self.shared_limit = properties.name, self.driver.shared_limit
        self.capability, self.multiprocessors = self.driver.capability, self.driver.multiprocessors
        self.l2_bytes = properties.L2_cache_size

    def module(self, source: Path) -> Callable[[list[Launch], int], None]:
        return loader.GpuModule(compile_for(source, self.capability).fatbin, self.driver).run

    def place(self, arrays: dict[str, np.ndarray]) -> CudaBuffers:
        return CudaBuffers(self.torch, arrays)

    def copies(self, call_bytes: int, limit: int = 32) -> int:
        return max(2, min(limit, -(-4 * self.l2_bytes // call_bytes)))

    def synchronize(self) -> None:
        self.driver.synchronize()

    def usable(self) -> bool:
        try:
            self.torch.zeros(1, device="cuda").cpu()
            self.synchronize()
        except Exception:  # whatever a spoilt context answers
            return False
        return True

    def time(self, calls: list[Call], replays: int = 20) -> Timing:
        """Captures the calls in a CUDA graph and times its replays with events."""
        stream = self.torch.cuda.Stream()
        with self.torch.cuda.stream(stream):
            for call in calls:  # compiles and tunes what needs it
                call(stream.cuda_stream)
        self.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call(stream.cuda_stream)
        samples = sorted(self._replay(graph) / len(calls) for _ in range(replays + 3))[:-3]
        return Timing(median(samples), samples[3 * len(samples) // 4] - samples[len(samples) // 4])

    def _replay(self, graph: Any) -> float:
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        self.synchronize()
        return start.elapsed_time(stop) * 1e3
