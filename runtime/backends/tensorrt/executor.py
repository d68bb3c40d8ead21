"""A loaded plan: TensorRT's engine and execution context behind the few calls that the backend makes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from deltart.errors import ArtifactError, BuildError, DeltaRTError
from deltart.plugins.kernel_call import prepare
from deltart.plugins.registry import OPS
from deltart.runtime.backends.gpu.cuda import device_name, driver_version
from deltart.runtime.backends.gpu.engine_manifest import CAPTURED, PlanEntry
from deltart.runtime.backends.gpu.executor import EnqueuedShapes
from deltart.runtime.backends.tensorrt.caches import KernelCache, cache_path
from deltart.runtime.backends.tensorrt.library import TensorRt


class TensorRtExecutor:
    """`Executor` over a plan file. Needs a GPU.

    Raises:
        ArtifactError: the file is not the plan that engine.json describes.
        MissingDependencyError: an op of the plan has no kernel, or the compiler for it is missing.
        BuildError: TensorRT can't load the plan on this GPU.
    """

    def __init__(self, library: TensorRt, path: Path, entry: PlanEntry) -> None:
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ArtifactError(
                f"{path} is not the plan that was built", "its recorded hash", "run `deltart build` again"
            )
        for spec in OPS:
            if spec.name in entry.plugins and library.native is None:
                prepare(spec)
        trt = library.trt
        self._library, self._name = library, path.name
        self._runtime = trt.Runtime(library.logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._error(
                "TensorRT can't load", f"run `deltart build` with TensorRT {library.version} for this GPU"
            )
        self._kernels: KernelCache | None = None
        self._context = self._new_context(path, entry)
        if self._context is None:
            raise self._error("TensorRT can't make a context of", "free device memory")
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        self._inputs = {b.name for b in entry.bindings if b.role in ("input", "state", "weight")}
        self._shapes = EnqueuedShapes()

    def _new_context(self, path: Path, entry: PlanEntry) -> Any:
        """A context whose scratch is ours. TensorRT-RTX compiles its kernels, which are kept beside the plan."""
        trt = self._library.trt
        scratch = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.flavour != "rtx":
            return self._engine.create_execution_context(scratch)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(scratch)
        if entry.phase in CAPTURED:
            # Lazily, a graph captured before the kernel for its shape is ready would keep the fallback for good.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        machine = (device_name(), driver_version(), self._library.version)
        self._kernels = KernelCache(config, cache_path(path.parent, path.stem, "kernels", entry.sha256, *machine))
        return self._engine.create_execution_context(config)

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """See Executor."""
        done = self._context.set_tensor_address(name, address)
        if name in self._inputs:
            done = self._context.set_input_shape(name, shape) and done
            self._shapes.bind(name, shape)
        if not done:
            raise self._error(f"'{name}' {list(shape)} does not fit", "call within the plan's profile")

    def use_scratch(self, address: int, nbytes: int) -> None:
        """See Executor."""
        self._context.set_device_memory(address, nbytes)

    def enqueue(self, stream: Any) -> None:
        """See Executor."""
        if not self._context.execute_async_v3(int(stream)):
            raise self._error("a call failed in", "see the messages")
        self._shapes.enqueue()
        if self._kernels is not None:
            self._kernels.save()
            self._kernels = None

    def capturable(self, stream: Any) -> bool:
        """See Executor."""
        if not self._shapes.unchanged:
            return False
        ask = getattr(self._context, "is_stream_capturable", None)
        return bool(ask(int(stream))) if ask else True

    def _error(self, found: str, hint: str) -> DeltaRTError:
        failure = self._library.take_failure()
        if isinstance(failure, DeltaRTError):
            return failure
        said = " | ".join([*([] if failure is None else [repr(failure)]), *self._library.messages.errors[-3:]])
        return BuildError(f"{found} {self._name}: {said or 'TensorRT gave no reason'}", hint=hint)
