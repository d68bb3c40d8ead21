"""The seam between a TensorRT plugin and an op's kernels: one call, seen without TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from deltart.errors import MissingDependencyError
from deltart.plugins.spec import OpSpec

# Modules that define KERNEL for an op. An op without a row here can be built into a plan, but not run.
KERNEL_MODULES: Mapping[str, str] = {
    "CausalConv1d": "deltart.plugins.causal_conv1d.plugin",
    "GatedDeltaRule": "deltart.plugins.gated_delta_rule.plugin",
}


@dataclass(frozen=True)
class Call:
    """Sizes, types and addresses of one call of an op.

    Args:
        sizes: axis sizes and attributes by the names of the op's contract.
        dtypes: "f32", "bf16", "i8" or "i32" by tensor.
        at: device addresses by tensor, outputs included; empty while a plan is built.
        workspace: address of the scratch memory.
    """

    sizes: Mapping[str, Any]
    dtypes: Mapping[str, str]
    at: Mapping[str, int] = field(default_factory=dict)
    workspace: int = 0


@dataclass(frozen=True)
class Kernel:
    """How an op runs on a GPU.

    `workspace_bytes` is an upper bound on any GPU for calls of at most these sizes. `enqueue` launches on a CUDA
    stream (a handle), allocating nothing; `prepare` loads what it needs, before any capture.
    """

    workspace_bytes: Callable[[Call], int]
    prepare: Callable[[], None]
    enqueue: Callable[[Call, int], None]


def has_kernel(spec: OpSpec) -> bool:
    """Whether the op has a CUDA kernel at all."""
    return spec.name in KERNEL_MODULES


def kernel_of(spec: OpSpec) -> Kernel:
    """The op's kernel; raises MissingDependencyError, naming the op, where there is none."""
    if not has_kernel(spec):
        raise MissingDependencyError(
            f"{spec.name} has no CUDA kernel yet",
            f"one of {', '.join(KERNEL_MODULES)}",
            "its plans can be built but not run: use the 'ort' backend",
        )
    kernel: Kernel = import_module(KERNEL_MODULES[spec.name]).KERNEL
    return kernel
