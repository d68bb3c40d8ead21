"""The few CUDA driver calls that the GPU backend makes. No torch, no CUDA runtime."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deltart.errors import DeltaRTError
from deltart.plugins.kernel_call import DeviceLimits
from deltart.plugins.launch import Launch
from deltart.plugins.loader import GpuDevice, GpuModule, check
from deltart.plugins.toolchain import compile_for

Run = Callable[[list[Launch]], None]  # enqueues launches on the stream
Stream = Any
Event = Any
Graph = Any


class Cuda(Protocol):
    """Memory, copies, streams and graphs of one device. Addresses are integers, sizes bytes."""

    stream: Stream

    @property
    def limits(self) -> DeviceLimits:
        """What kernels' launches depend on."""

    def allocate(self, nbytes: int) -> int:
        """Device memory, aligned to 256 bytes at least."""

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""

    def pinned(self, nbytes: int) -> np.ndarray:
        """Page-locked host memory as uint8, until `unpin`; kernels see it at the same address."""

    def unpin(self, array: np.ndarray) -> None:
        """Give back what `pinned` gave."""

    def zero(self, address: int, nbytes: int) -> None:
        """Fill device memory with zeros, in stream order."""

    def to_device(self, address: int, source: np.ndarray) -> None:
        """Copy contiguous pinned bytes to the device, in stream order."""

    def to_host(self, target: np.ndarray, address: int) -> None:
        """Copy device bytes to contiguous pinned memory, in stream order."""

    def record(self) -> Event:
        """A mark behind everything enqueued so far."""

    def wait(self, event: Event) -> None:
        """Block until the stream has passed `event`."""

    def synchronize(self) -> None:
        """Block until the stream is idle."""

    def begin_capture(self) -> None:
        """From here on work on the stream is recorded, not run."""

    def end_capture(self) -> Graph:
        """The recorded work, ready to launch."""

    def launch(self, graph: Graph) -> None:
        """Run a recorded graph on the stream."""

    def discard(self, graph: Graph) -> None:
        """Give back a recorded graph."""

    def kernels(self, source: Path) -> Run:
        """The kernels of a .cu file, compiled and loaded at the first call."""


class CudaDriver:
    """`Cuda` on device `ordinal` through cuda-bindings.

    Raises:
        MissingDependencyError: cuda-bindings, a driver or a GPU is missing.
        BuildError: a driver call failed (on any method).
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._device = GpuDevice(ordinal)
        self._cu = self._device.driver
        self._modules: dict[Path, GpuModule] = {}
        self.stream: Stream = check(self._cu.cuStreamCreate(1))  # 1: does not wait for the default stream

    @property
    def limits(self) -> DeviceLimits:
        return self._device

    def allocate(self, nbytes: int) -> int:
        return int(check(self._cu.cuMemAlloc(max(nbytes, 1))))

    def free(self, address: int) -> None:
        check(self._cu.cuMemFree(address))

    def pinned(self, nbytes: int) -> np.ndarray:
        address = int(check(self._cu.cuMemHostAlloc(max(nbytes, 1), 3)))  # 3: portable and mapped
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def unpin(self, array: np.ndarray) -> None:
        check(self._cu.cuMemFreeHost(array.ctypes.data))

    def zero(self, address: int, nbytes: int) -> None:
        check(self._cu.cuMemsetD8Async(address, 0, nbytes, self.stream))

    def to_device(self, address: int, source: np.ndarray) -> None:
        check(self._cu.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, self.stream))

    def to_host(self, target: np.ndarray, address: int) -> None:
        check(self._cu.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, self.stream))

    def record(self) -> Event:
        event = check(self._cu.cuEventCreate(2))  # 2: no timing
        check(self._cu.cuEventRecord(event, self.stream))
        return event

    def wait(self, event: Event) -> None:
        check(self._cu.cuEventSynchronize(event))
        check(self._cu.cuEventDestroy(event))

    def synchronize(self) -> None:
        check(self._cu.cuStreamSynchronize(self.stream))

    def begin_capture(self) -> None:
        mode = self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(self._cu.cuStreamBeginCapture(self.stream, mode))

    def end_capture(self) -> Graph:
        graph = check(self._cu.cuStreamEndCapture(self.stream))
        runnable = check(self._cu.cuGraphInstantiate(graph, 0))
        check(self._cu.cuGraphDestroy(graph))
        return runnable

    def launch(self, graph: Graph) -> None:
        check(self._cu.cuGraphLaunch(graph, self.stream))

    def discard(self, graph: Graph) -> None:
        check(self._cu.cuGraphExecDestroy(graph))

    def kernels(self, source: Path) -> Run:
        if source not in self._modules:
            self._modules[source] = GpuModule(compile_for(source, self._device.capability).fatbin, self._device)
        module = self._modules[source]
        return lambda launches: module.run(launches, int(self.stream))


def captured(cuda: Cuda, work: Callable[[], None]) -> Graph:
    """What `work` enqueues, as a graph; raises what `work` raises, with nothing left capturing.

    The cyclic collector waits meanwhile: what it would release synchronizes the stream, which ends a capture.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        cuda.begin_capture()
        try:
            work()
        except BaseException:
            with suppress(DeltaRTError):  # what broke the capture says more than that it is broken
                cuda.end_capture()
            raise
        return cuda.end_capture()
    finally:
        if collects:
            gc.enable()


def device_name(ordinal: int = 0) -> str:
    """Name and compute capability of a GPU ("NVIDIA L4 sm_89"); raises as CudaDriver does."""
    cu = GpuDevice(ordinal).driver
    kind = cu.CUdevice_attribute
    handle = check(cu.cuDeviceGet(ordinal))
    major = check(cu.cuDeviceGetAttribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle))
    minor = check(cu.cuDeviceGetAttribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle))
    name = check(cu.cuDeviceGetName(128, handle)).split(b"\0")[0].decode()
    return f"{name} sm_{major}{minor}"


def driver_version() -> str:
    """The CUDA version that the driver serves, as it counts it ("13000"); raises as CudaDriver does."""
    return str(check(GpuDevice().driver.cuDriverGetVersion()))
