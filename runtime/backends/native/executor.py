"""Runs a native plan: our kernels one after another on a stream, nothing of TensorRT."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from deltart.dtypes import BY_NAME
from deltart.errors import ArtifactError, BuildError
from deltart.manifest import shape_of
from deltart.plugins.kernel_call import Call, addresses, kernel_of, on_device
from deltart.plugins.launch import Launch
from deltart.plugins.registry import NATIVE_OPS, OPS
from deltart.runtime.backends.gpu.cuda import Cuda, Run
from deltart.runtime.backends.gpu.engine_manifest import PlanEntry
from deltart.runtime.backends.native.plan import AGAIN, NativePlan, Step, read_plan

SPECS = {spec.name: spec for spec in (*OPS, *NATIVE_OPS)}


class NativeExecutor:
    """`Executor` over a native plan.

    The launches of a call follow from what is bound; they are made again only when that changes.

    Args:
        cuda: the device, which compiles and loads a kernel where it is first needed.

    Raises:
        ArtifactError: the file is not the plan that engine.json describes, or names an op that is not there.
    """

    def __init__(self, path: Path, entry: PlanEntry, cuda: Cuda) -> None:
        self._plan = _checked(path, entry)
        self._cuda, self._name = cuda, path.name
        self.scratch_bytes = self._plan.arena_bytes
        self._bindings = {binding.name: binding for binding in entry.bindings}
        self._dtypes = {name: BY_NAME[binding.dtype].short for name, binding in self._bindings.items()}
        self._dtypes |= {name: tensor.dtype for name, tensor in self._plan.tensors.items()}
        self._dtypes |= {name: constant.dtype for name, constant in self._plan.constants.items()}
        self._constants = {name: _to_device(cuda, c.array()) for name, c in self._plan.constants.items()}
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._arena = 0
        self._calls: list[tuple[Run, list[Launch]]] | None = None

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """See Executor."""
        if self._bound.get(name) != (address, shape):
            self._bound[name], self._calls = (address, shape), None

    def use_scratch(self, address: int, nbytes: int) -> None:
        """See Executor."""
        if nbytes < self.scratch_bytes:
            raise BuildError(f"{nbytes} bytes of scratch for {self._name}", f"{self.scratch_bytes}")
        self._arena, self._calls = address, None

    def enqueue(self, stream: Any) -> None:
        """See Executor."""
        assert stream is self._cuda.stream
        if self._calls is None:
            self._calls = self._made()
        for run, launches in self._calls:
            run(launches)

    def capturable(self, stream: Any) -> bool:
        """See Executor."""
        return True

    def _made(self) -> list[tuple[Run, list[Launch]]]:
        """Every launch, in runs of one source."""
        sizes: dict[str, int] = {}
        for name, binding in self._bindings.items():
            if name not in self._bound:
                raise BuildError(f"'{name}' of {self._name} is not bound", "an address for every input and output")
            sizes |= {a: n for a, n in zip(binding.axes, self._bound[name][1], strict=True) if isinstance(a, str)}
        at = {name: address for name, (address, _) in self._bound.items()} | self._constants
        shapes: dict[str, tuple[int, ...]] = {name: shape for name, (_, shape) in self._bound.items()}
        shapes |= {name: tuple(constant.shape) for name, constant in self._plan.constants.items()}
        for name, tensor in self._plan.tensors.items():
            at[name], shapes[name] = self._arena + tensor.offset, shape_of(tensor.axes, sizes)
        calls: list[tuple[Path, list[Launch]]] = []
        for step in self._plan.steps:
            source, launches = self._launches(step, at, shapes)
            if calls and calls[-1][0] == source:
                calls[-1][1].extend(launches)
            else:
                calls.append((source, list(launches)))
        return [(self._cuda.kernels(source), launches) for source, launches in calls]

    def _launches(
        self, step: Step, at: dict[str, int], shapes: dict[str, tuple[int, ...]]
    ) -> tuple[Path, list[Launch]]:
        spec = SPECS[step.op]
        sizes = spec.bind_axes([shapes[name] for name in step.inputs], step.attributes)
        dtypes = {t.name: self._dtypes[name] for t, name in zip(spec.inputs, step.inputs, strict=True)}
        places = addresses(spec, [at[name] for name in step.inputs], [at[name] for name in step.outputs])
        call = Call(sizes, dtypes, places | {"workspace": self._arena + step.workspace})
        kernel = kernel_of(spec)
        source, launches = kernel.launches(on_device(call, self._cuda.limits))
        return kernel.folder / source, launches


def _checked(path: Path, entry: PlanEntry) -> NativePlan:
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ArtifactError(f"{path} is not the plan that was built", "its recorded hash", AGAIN)
    plan = read_plan(content, path)
    unknown = sorted({step.op for step in plan.steps} - SPECS.keys())
    if unknown:
        raise ArtifactError(f"{path} calls {', '.join(unknown)}", "ops of plugins/registry.py", AGAIN)
    return plan


def _to_device(cuda: Cuda, array: np.ndarray) -> int:
    source = cuda.pinned(max(array.nbytes, 1))
    address = cuda.allocate(array.nbytes)
    source[: array.nbytes] = array.reshape(-1).view(np.uint8)
    cuda.to_device(address, source[: array.nbytes])
    cuda.synchronize()
    cuda.unpin(source)
    return address
