"""The seam between a TensorRT plugin and an op's CUDA kernels: one call, seen without TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from deltart.errors import BuildError
from deltart.plugins.launch import Launch
from deltart.plugins.loader import GpuDevice, GpuModule
from deltart.plugins.spec import OpSpec
from deltart.plugins.toolchain import compile_for


@dataclass(frozen=True)
class Call:
    """Sizes, types and addresses of one call of an op.

    Args:
        sizes: axis sizes and attributes by the names of the op's contract.
        dtypes: "f32", "bf16", "f16", "i8", "i32" or "i64" by input tensor.
        at: device addresses by tensor, outputs and "workspace" included; empty while a plan is built.
        shared_limit: bytes of shared memory that the device gives a block.
        capability: the device's compute capability times ten (90 for 9.0).
        multiprocessors: the device's.
    """

    sizes: Mapping[str, Any]
    dtypes: Mapping[str, str]
    at: dict[str, int] = field(default_factory=dict)
    shared_limit: int = 0
    capability: int = 0
    multiprocessors: int = 0


@dataclass(frozen=True)
class Kernel:
    """How an op runs on a GPU.

    `workspace_bytes` is enough for this call and any smaller one, on any GPU. `launches` names the .cu file in
    `folder` that holds the kernels, and their launches.
    """

    folder: Path
    sources: tuple[str, ...]
    workspace_bytes: Callable[[Call], int]
    launches: Callable[[Call], tuple[str, list[Launch]]]


def kernel_of(spec: OpSpec) -> Kernel:
    """The op's kernel, as its folder's `plugin` module states it."""
    kernel: Kernel = import_module(f"{spec.package}.plugin").KERNELS[spec.name]
    return kernel


def prepare(spec: OpSpec) -> None:
    """Compile (or find) and load the op's kernels, so that no call has to. Needs a GPU."""
    kernel = kernel_of(spec)
    for source in kernel.sources:
        _module(kernel.folder / source)


def enqueue(spec: OpSpec, call: Call, stream: int) -> None:
    """Launch one call on a CUDA stream (a handle): nothing is allocated, the stream may be capturing."""
    kernel = kernel_of(spec)
    source, launches = kernel.launches(on_device(call, _device()))
    _module(kernel.folder / source).run(launches, stream)


class DeviceLimits(Protocol):
    """What launches may depend on besides sizes and types; as in Call."""

    shared_limit: int
    capability: int
    multiprocessors: int


def on_device(call: Call, device: DeviceLimits) -> Call:
    """`call` with what its launches may depend on besides sizes and types."""
    return replace(
        call,
        shared_limit=device.shared_limit,
        capability=device.capability,
        multiprocessors=device.multiprocessors,
    )


def addresses(spec: OpSpec, inputs: Sequence[int], outputs: Sequence[int]) -> dict[str, int]:
    """Addresses by tensor name, given in the contract's order.

    Raises:
        BuildError: an output that is updated in place is elsewhere than its input.
    """
    at = {t.name: int(p) for t, p in zip(spec.inputs, inputs, strict=True)}
    for tensor, pointer in zip(spec.outputs, outputs, strict=True):
        if tensor.alias is not None and at[tensor.alias] != int(pointer):
            raise BuildError(
                f"{spec.name}.{tensor.name} has different buffers as input and output",
                "one buffer, updated in place",
                "build with PreviewFeature.ALIASED_PLUGIN_IO_10_03 and bind both to one address",
            )
        at[tensor.name] = int(pointer)
    return at


@cache
def _device() -> GpuDevice:
    return GpuDevice()


@cache
def _module(source: Path) -> GpuModule:
    return GpuModule(compile_for(source, _device().capability).fatbin, _device())
