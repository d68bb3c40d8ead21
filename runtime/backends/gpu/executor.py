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


class EnqueuedShapes:
    """The inputs' shapes as they are bound, and as the plan last ran with them: TensorRT wants one plain call with new
    ones before a call is captured ("Working with CUDA Graphs" in its developer guide)."""

    def __init__(self) -> None:
        self._bound: dict[str, tuple[int, ...]] = {}
        self._enqueued: dict[str, tuple[int, ...]] = {}

    def bind(self, name: str, shape: tuple[int, ...]) -> None:
        """An input has this shape from now on."""
        self._bound[name] = shape

    def enqueue(self) -> None:
        """The plan runs as bound."""
        self._enqueued = dict(self._bound)

    @property
    def unchanged(self) -> bool:
        """Whether the plan ran with the shapes that are bound."""
        return self._enqueued == self._bound


Load = Callable[[Path, PlanEntry], Executor]
