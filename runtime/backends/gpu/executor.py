"""What runs a plan: the seam between the GPU backend and TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deltart.runtime.backends.gpu.engine_manifest import PlanEntry


class Executor(Protocol):
    """One plan that can be bound and run on a stream."""

    scratch_bytes: int

    def bind(self, name: str, address: int, shape: tuple[int, ...]) -> None:
        """Set a tensor's device address, and for an input its shape."""

    def use_scratch(self, address: int, nbytes: int) -> None:
        """Give the plan its scratch memory."""

    def enqueue(self, stream: Any) -> None:
        """Run once on `stream`; raises BuildError, or what a plugin raised."""

    def capturable(self, stream: Any) -> bool:
        """Whether the call, as bound, may be captured in a CUDA graph."""


Load = Callable[[Path, PlanEntry], Executor]
