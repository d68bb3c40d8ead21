"""The contract of a composite op, stated once.

An `OpSpec` names an op's tensors, their axes and attributes, and its numpy reference. Everything else that must
agree with it is derived here: the torch custom op (its body is the reference), its fake kernel, the ONNX schema,
the translation to a graph node, and the TensorRT plugin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DOMAIN = "deltart"
VERSION = 1

ACT = "T"  # activation dtype: f32 on ONNX Runtime, bf16 on TensorRT
STORED = "W"  # whatever dtype the checkpoint stores: f32, f16, bf16; kernels read f32 and bf16
SCALE = "S"  # the same, where kernels read f16 too
FP8 = "F8"  # E4M3
F32 = "F32"
I32 = "I32"
U8 = "U8"  # packed values
I64 = "I64"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an op: its name, dtype class and axes.

    An axis is a name bound by the inputs ("B", "T") or, in outputs, a product or sum of names ("Hv*Dv").
    `alias` names the input whose buffer an output may update in place.
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    alias: str | None = None


@dataclass(frozen=True)
class OpSpec:
    """A composite op. `reference` takes numpy float64/int arrays and the attributes, and returns float64 arrays."""

    name: str
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference: Callable[..., tuple[np.ndarray, ...]]
    attributes: Mapping[str, type] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The package of the op's folder; its modules `plugin` and `bodies` have the op's entries by name."""
        return self.reference.__module__.rpartition(".")[0]

    def bind_axes(self, shapes: Sequence[Sequence[Any]], attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Axis sizes by name, from the input shapes; raises ValueError where two inputs disagree on a size."""
        sizes: dict[str, Any] = dict(attributes)
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if len(spec.axes) != len(shape):
                raise ValueError(f"{self.name}.{spec.name}: rank {len(shape)}, expected {spec.axes}")
            for axis, size in zip(spec.axes, shape, strict=True):
                known = sizes.setdefault(axis, size)
                if isinstance(known, int) and isinstance(size, int) and known != size:
                    raise ValueError(f"{self.name}.{spec.name}: axis {axis} is {size}, expected {known}")
        return sizes

    def output_shapes(self, shapes: Sequence[Sequence[Any]], attributes: Mapping[str, Any]) -> list[list[Any]]:
        """Output shapes; sizes may be symbolic."""
        sizes = self.bind_axes(shapes, attributes)
        return [[_evaluate(axis, sizes) for axis in spec.axes] for spec in self.outputs]


def _evaluate(expression: str, sizes: Mapping[str, Any]) -> Any:
    terms = expression.split("+")
    return sum(math.prod(int(f) if f.isdigit() else sizes[f] for f in term.split("*")) for term in terms)
