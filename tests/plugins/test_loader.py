"""The driver loader: against a driver that records calls, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import functools
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deltart.errors import BuildError, MissingDependencyError
from deltart.plugins import kernel_call, loader, toolchain
from deltart.plugins.launch import Launch


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100


class RecordingDriver:
    """Answers as cuda.bindings.driver does, and reads launch arguments back through their pointers."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=100 << 10,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=132,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
    )
    CUlaunchConfig = SimpleNamespace
    CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="dependent")
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic")

    def __init__(self, status: Status = Status.CUDA_SUCCESS) -> None:
        self.status, self.calls = status, []

    def cuDeviceGetAttribute(self, attribute: int, handle: str) -> tuple:  # noqa: N802
        return Status.CUDA_SUCCESS, attribute

    @staticmethod
    def CUlaunchAttribute() -> SimpleNamespace:  # noqa: N802  # the driver's name, as below
        return SimpleNamespace(value=SimpleNamespace())

    def cuLaunchKernelEx(self, config: SimpleNamespace, function: str, arguments: int, extra: int) -> tuple:  # noqa: N802
        pointers = (ctypes.c_void_p * 2).from_address(arguments)
        values = ctypes.c_void_p.from_address(pointers[0]).value, ctypes.c_int.from_address(pointers[1]).value
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        block = config.blockDimX, config.blockDimY, config.blockDimZ
        attributes = {a.id: a.value.programmaticStreamSerializationAllowed for a in config.attrs}
        assert len(attributes) == config.numAttrs
        self.calls.append(
            ("launch", function, (*grid, *block, config.sharedMemBytes, config.hStream), values, attributes)
        )
        return (Status.CUDA_SUCCESS,)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> tuple:
            self.calls.append((name, *args))
            return self.status, name

        return call


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RecordingDriver:
    driver = RecordingDriver()
    monkeypatch.setattr(loader, "_driver", lambda: driver)
    return driver


def test_launch_geometry_and_arguments(recorder: RecordingDriver, tmp_path: Path) -> None:
    (tmp_path / "k.fatbin").write_bytes(b"fat")
    kernels = loader.GpuModule(tmp_path / "k.fatbin", loader.GpuDevice())
    args = (ctypes.c_void_p(0x1234), ctypes.c_int(-7))
    kernels.run([Launch("k", (2, 3, 4), 64, 1024, args), Launch("k", (1, 1, 1), 32, 64 << 10, args)], stream=5)
    launches = [call for call in recorder.calls if call[0] == "launch"]
    geometry = (2, 3, 4, 64, 1, 1, 1024, 5)
    assert launches[0] == ("launch", "cuModuleGetFunction", geometry, (0x1234, -7), {"dependent": 1})
    assert ("cuFuncSetAttribute", "cuModuleGetFunction", "dynamic", 64 << 10) in recorder.calls
    assert ("cuModuleLoadData", b"fat") in recorder.calls
    with pytest.raises(BuildError, match="shared memory"):
        kernels.run([Launch("k", (1, 1, 1), 32, 101 << 10, args)])


def test_launches_overlap_from_hopper_on(recorder: RecordingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(loader.GpuDevice().launch_attributes) == 1
    monkeypatch.setattr(recorder.CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", 8)
    assert loader.GpuDevice().launch_attributes == []


def test_what_launches_may_depend_on(recorder: RecordingDriver) -> None:
    call = kernel_call.on_device(kernel_call.Call({}, {}), loader.GpuDevice())
    assert (call.shared_limit, call.capability, call.multiprocessors) == (100 << 10, 90, 132)


def test_no_device_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_driver", lambda: RecordingDriver(Status.CUDA_ERROR_NO_DEVICE))
    with pytest.raises(MissingDependencyError, match="CUDA_ERROR_NO_DEVICE"):
        loader.GpuDevice()


@pytest.mark.gpu
def test_decode_on_the_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from deltart.plugins.gated_delta_rule import inputs, launch
    from support import gdr_on_shim as shim

    kernels = loader.GpuModule(toolchain.compile_gpu(shim.FOLDER / "decode.cu").fatbin, loader.GpuDevice())

    def decode(shape: inputs.Shape, given: dict[str, np.ndarray]) -> np.ndarray:
        found = inputs.outputs(shape)
        buffers = {name: torch.from_numpy(x.view(np.uint8)).cuda() for name, x in (given | found).items()}
        kernels.run([launch.decode(shape, {name: x.data_ptr() for name, x in buffers.items()})])
        torch.cuda.synchronize()
        for name, array in (("S", given["S"]), ("o", found["o"])):
            array[...] = buffers[name].cpu().numpy().view(array.dtype)
        return found["o"]

    for dtype in ("f32", "bf16"):
        shape = inputs.Shape(slots=3, tokens=4, dtype=dtype)
        assert shim.within(shape, shim.errors(functools.partial(decode), shape))
