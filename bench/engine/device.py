"""Where the benchmark runs: an NVIDIA GPU, or a GPU made of host memory for a dry run of the same code."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deltart.artifact import load_manifest
from deltart.plugins.cpu_shim.host_cuda import HostCuda
from deltart.plugins.loader import check
from deltart.runtime.backends.gpu.cuda import CudaDriver, device_name
from deltart.runtime.backends.gpu.engine_manifest import PlanEntry
from deltart.runtime.backends.gpu.executor import Load

COPY_BYTES = 1 << 30


class Device(Protocol):
    """What the measurements need of a device."""

    name: str
    cuda: Any

    def load(self, artifact: Path, flavour: str) -> Load | None:
        """How a TensorRtBackend loads plans; None for the flavour's own way."""

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Time that the device takes for what `work` enqueues."""

    def overlap(self, allowed: bool) -> None:
        """Whether a launch may begin before the one before it ends, where the device can do that."""

    def copy_gbs(self) -> float:
        """GB/s of a copy from device memory to device memory, both directions counted."""


class Gpu:
    """The first GPU, timed by its own events."""

    def __init__(self) -> None:
        self.cuda, self.name = CudaDriver(), device_name()
        self._driver = self.cuda._cu
        self._attributes = self.cuda.limits.launch_attributes

    def load(self, artifact: Path, flavour: str) -> Load | None:
        return None

    def milliseconds(self, work: Callable[[], None]) -> float:
        begin, end = (check(self._driver.cuEventCreate(0)) for _ in range(2))
        self.cuda.synchronize()
        check(self._driver.cuEventRecord(begin, self.cuda.stream))
        work()
        check(self._driver.cuEventRecord(end, self.cuda.stream))
        check(self._driver.cuEventSynchronize(end))
        taken = float(check(self._driver.cuEventElapsedTime(begin, end)))
        for event in (begin, end):
            check(self._driver.cuEventDestroy(event))
        return taken

    def overlap(self, allowed: bool) -> None:
        self.cuda.limits.launch_attributes = self._attributes if allowed else []

    def copy_gbs(self) -> float:
        source, target = (self.cuda.allocate(COPY_BYTES) for _ in range(2))

        def copy(times: int) -> None:
            for _ in range(times):
                check(self._driver.cuMemcpyDtoDAsync(target, source, COPY_BYTES, self.cuda.stream))

        copy(2)
        taken = min(self.milliseconds(lambda: copy(10)) for _ in range(3))
        for address in (source, target):
            self.cuda.free(address)
        return 2 * 10 * COPY_BYTES / taken / 1e6


class HostGpu:
    """Host memory, TensorRT's plans computed by ONNX Runtime, native ones on the CPU shim. Its times say nothing."""

    name = "dry run on host memory"

    def __init__(self) -> None:
        self.cuda = HostCuda()

    def load(self, artifact: Path, flavour: str) -> Load | None:
        if flavour == "native":
            return None
        from deltart.verify.ort_executor import OrtExecutor

        graphs = load_manifest(artifact).graphs

        def executor(path: Path, entry: PlanEntry) -> Any:
            return OrtExecutor(artifact, entry, graphs[entry.graph])

        return executor

    def milliseconds(self, work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * 1e3

    def overlap(self, allowed: bool) -> None:
        pass

    def copy_gbs(self) -> float:
        return 0.0
