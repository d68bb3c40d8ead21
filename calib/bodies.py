"""Runs the composite ops by their fast torch bodies, so that calibration text goes through a block quickly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deltart.export import ops  # noqa: F401  registers the ops
from deltart.plugins.bodies import bodies_of
from deltart.plugins.registry import MODEL_OPS

BODIES: dict[Any, Callable[..., Any] | None] = {
    getattr(torch.ops.deltart, spec.name).default: bodies_of(spec).torch for spec in MODEL_OPS
}


class FastBodies(TorchDispatchMode):
    """Within this context the composite ops run their torch bodies instead of their references."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (BODIES.get(func) or func)(*args, **(kwargs or {}))
