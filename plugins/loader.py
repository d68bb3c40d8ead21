"""Runs compiled kernels on an NVIDIA GPU through the CUDA driver: no torch, no CUDA runtime."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins.launch import Launch

DEPENDENT_LAUNCH = 90  # the compute capability, times ten, from which a launch may begin before the one before it ends
DEFAULT_SHARED_BYTES = 48 << 10  # what a block gets without asking


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependencyError(
            "cuda-bindings is not installed", "the CUDA driver's Python bindings", "pip install cuda-bindings"
        ) from error
    return driver


def check(result: tuple[Any, ...]) -> Any:
    """The value of a driver call's (status, value...) tuple; raises BuildError unless the status is success."""
    status, *values = result
    if status != 0:
        raise BuildError(f"the CUDA driver answered {status.name}", "CUDA_SUCCESS")
    return values[0] if len(values) == 1 else tuple(values)


class GpuDevice:
    """One GPU with its primary context, which torch and TensorRT share."""

    def __init__(self, ordinal: int = 0) -> None:
        self.driver = _driver()
        try:
            check(self.driver.cuInit(0))
            handle = check(self.driver.cuDeviceGet(ordinal))
        except (BuildError, RuntimeError) as error:
            raise MissingDependencyError(
                f"no CUDA device {ordinal}: {error}",
                "an NVIDIA GPU and its driver",
                "run the kernels on the CPU shim instead",
            ) from error
        check(self.driver.cuCtxSetCurrent(check(self.driver.cuDevicePrimaryCtxRetain(handle))))
        self.handle = handle
        self.shared_limit = self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")  # bytes
        self.multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        major, minor = (self._attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        self.capability = 10 * major + minor
        self.launch_attributes = self._launch_attributes()

    def _launch_attributes(self) -> list[Any]:
        """Of every launch: programmatic dependent launch, where there is such a thing (common/dependency.cuh)."""
        if self.capability < DEPENDENT_LAUNCH:
            return []
        attribute = self.driver.CUlaunchAttribute()
        attribute.id = self.driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        return [attribute]

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(check(self.driver.cuDeviceGetAttribute(attribute, self.handle)))

    def synchronize(self) -> None:
        """Waits for all work of the context; raises BuildError for an error in any of it."""
        check(self.driver.cuCtxSynchronize())


class GpuModule:
    """The kernels of one fatbin on one device."""

    def __init__(self, fatbin: Path, device: GpuDevice) -> None:
        self.driver, self.device = device.driver, device
        self.module = check(self.driver.cuModuleLoadData(fatbin.read_bytes()))
        self.functions: dict[str, Any] = {}

    def _function(self, launch: Launch) -> Any:
        if launch.kernel not in self.functions:
            self.functions[launch.kernel] = check(self.driver.cuModuleGetFunction(self.module, launch.kernel.encode()))
        function = self.functions[launch.kernel]
        if launch.shared_bytes > self.device.shared_limit:
            raise BuildError(
                f"{launch.kernel} asks for {launch.shared_bytes} bytes of shared memory",
                f"at most {self.device.shared_limit}",
                "plan with this device's shared_limit",
            )
        if launch.shared_bytes > DEFAULT_SHARED_BYTES:
            attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(self.driver.cuFuncSetAttribute(function, attribute, launch.shared_bytes))
        return function

    def run(self, launches: list[Launch], stream: int = 0) -> None:
        """Enqueues `launches` on `stream` (a CUstream handle). Nothing is allocated; a stream may be capturing."""
        config = self.driver.CUlaunchConfig()
        config.attrs, config.numAttrs = self.device.launch_attributes, len(self.device.launch_attributes)
        config.blockDimY = config.blockDimZ = 1
        config.hStream = stream
        for launch in launches:
            arguments = (ctypes.c_void_p * len(launch.args))(*(ctypes.addressof(arg) for arg in launch.args))
            config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
            config.blockDimX, config.sharedMemBytes = launch.block, launch.shared_bytes
            check(self.driver.cuLaunchKernelEx(config, self._function(launch), ctypes.addressof(arguments), 0))
