"""What stands for an op where no plugin serves it: ONNX functions for two targets, and torch for calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from deltart.plugins.spec import OpSpec

Body = Callable[[Mapping[str, Any]], str]  # the op's attributes -> the text of an ONNX function, in float32


@dataclass(frozen=True)
class Bodies:
    """An op's bodies.

    Args:
        portable: standard ONNX ops, for any runtime.
        ort: ONNX Runtime's contrib kernels; `portable` where None.
        ort_in_place: whether `ort` may write every state over its input.
        torch: the reference on float32 tensors, fast enough for calibration text, from empty caches. None: too few
            call it.
    """

    portable: Body
    ort: Body | None = None
    ort_in_place: bool = False
    torch: Callable[..., Any] | None = None


def bodies_of(spec: OpSpec) -> Bodies:
    """The op's bodies, as its folder's `bodies` module states them. That module imports torch."""
    bodies: Bodies = import_module(f"{spec.package}.bodies").BODIES[spec.name]
    return bodies


def integers(*values: int) -> str:
    """The right side of a constant of a body: a list of int64."""
    return f"Constant <value_ints: ints = [{', '.join(map(str, values))}]> ()"
