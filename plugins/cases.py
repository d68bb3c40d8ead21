"""Calls of the kernels that tests and benchmarks share; each op's folder states its own in `cases`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from deltart.plugins.kernel_call import Call
from deltart.plugins.launch import Launch
from deltart.plugins.spec import ACT, F32, FP8, I32, SCALE, STORED, U8, OpSpec
from deltart.plugins.tolerance import relative_rms

Arrays = dict[str, np.ndarray]

LIMIT = 99 << 10  # bytes of shared memory that the small GPUs give a block
LIMITS = (48 << 10, LIMIT, 163 << 10, 227 << 10)
SLOTS = (1, 7, 8, 64)
PAIRS = tuple(product(("bf16", "f32"), repeat=2))  # of activations and stored weights


@dataclass(frozen=True)
class OpCall:
    """One call of an op without data: a size for every axis of its inputs, its attributes, types, and the device."""

    spec: OpSpec
    sizes: Mapping[str, int]
    attributes: Mapping[str, Any]
    dtypes: Mapping[str, str]
    shared_limit: int
    capability: int = 90
    multiprocessors: int = 132

    @property
    def shapes(self) -> list[list[int]]:
        """Of the inputs."""
        known = {**self.sizes, **self.attributes}
        return [[int(known[axis]) for axis in tensor.axes] for tensor in self.spec.inputs]

    @property
    def addresses(self) -> list[int]:
        """Of the inputs, the outputs and the workspace; a state's output is its input."""
        inputs = {t.name: 0x7F0000000000 + 0x1001000 * i for i, t in enumerate(self.spec.inputs)}
        outputs = [inputs[t.alias] if t.alias else 0x7E0000000000 + 0x100 * i for i, t in enumerate(self.spec.outputs)]
        return [*inputs.values(), *outputs, 0x7D0000000000]

    def call(self) -> Call:
        """What the op's kernel is given."""
        names = [*(t.name for t in self.spec.inputs), *(t.name for t in self.spec.outputs), "workspace"]
        sizes = self.spec.bind_axes(self.shapes, self.attributes)
        at = dict(zip(names, self.addresses, strict=True))
        return Call(sizes, self.dtypes, at, self.shared_limit, self.capability, self.multiprocessors)


def op_call(
    spec: OpSpec,
    sizes: Mapping[str, int],
    attributes: Mapping[str, int | float],
    types: Sequence[str],
    limit: int = LIMIT,
) -> OpCall:
    """A call with the types that its dtype classes allow; `types` are those of activations and stored weights."""
    kinds = {ACT: types[0], STORED: types[1], SCALE: types[1], FP8: "i8", U8: "i8", F32: "f32", I32: "i32"}
    return OpCall(spec, sizes, attributes, {t.name: kinds[t.dtype] for t in spec.inputs}, limit)


def calls_of(spec: OpSpec) -> Iterator[OpCall]:
    """The op's calls whose launches are compared with the C++ library's: odd sizes, every threshold, some refused."""
    calls: Callable[[], Iterator[OpCall]] = import_module(f"{spec.package}.cases").CALLS[spec.name]
    return calls()


@dataclass(frozen=True)
class KernelCase:
    """One call of a kernel with data: checked against float64 by tests and benchmark, and timed by the latter.

    Args:
        given: makes the inputs of a seed.
        outputs: arrays that the kernel writes, full of NaN; its scratch too.
        launches: at the addresses of all of these.
        expected: the float64 results by name, those of states included, for some inputs.
        tolerance: relative RMS allowed to each of them.
        rewritten: inputs that are written back, whose bytes count twice.
        read: the inputs' bytes that the call has to read, where that is not all of them.
    """

    name: str
    source: Path
    given: Callable[[int], Arrays]
    outputs: Callable[[], Arrays]
    launches: Callable[[dict[str, int]], list[Launch]]
    expected: Callable[[Arrays], Arrays]
    tolerance: Mapping[str, float]
    rewritten: tuple[str, ...] = ()
    read: Callable[[Arrays], int] | None = None

    def errors(self, given: Arrays, found: Callable[[str], np.ndarray]) -> dict[str, float]:
        """Relative RMS of every result, of a call with `given` whose arrays `found` reads by name."""
        return {name: relative_rms(found(name), right) for name, right in self.expected(given).items()}

    def passed(self, errors: Mapping[str, float]) -> bool:
        """Whether errors keep to the tolerances."""
        return all(error <= self.tolerance[name] for name, error in errors.items())

    def moved(self, arrays: Arrays) -> int:
        """The least bytes that the call has to move."""
        if self.read is not None:
            return self.read(arrays)
        return sum(array.nbytes * (2 if name in self.rewritten else 1) for name, array in arrays.items())
