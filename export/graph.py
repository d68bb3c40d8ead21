"""A model as a chain of blocks: what each block reads, carries as state, writes, and where its weights come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from deltart.dtypes import BY_NAME, BY_STORED, DType
from deltart.export.formats import Linears
from deltart.manifest import shape_of
from deltart.plugins.spec import ACT

I64 = "I64"
Axes = tuple[str | int, ...]


@dataclass(frozen=True)
class Value:
    """A tensor between blocks or at the graph's border. Named axes are dynamic; `dtype` as in `plugins.spec`."""

    name: str
    dtype: str
    axes: Axes

    def element_type(self, activations: torch.dtype) -> DType:
        """Its element type where activations are of `activations`."""
        return BY_NAME[str(activations).removeprefix("torch.")] if self.dtype == ACT else BY_STORED[self.dtype]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape where the named axes have these sizes."""
        return shape_of(self.axes, sizes)


@dataclass(frozen=True)
class State(Value):
    """A tensor a block carries from call to call, kept per slot and updated in place where the target can."""


@dataclass(frozen=True)
class Block:
    """One node of the assembled graph.

    `make` builds the module; its forward takes `inputs` then `states` and returns `outputs` then `states`.
    `prefixes` maps the start of a parameter name to the start of its tensor's name in the checkpoint.
    """

    name: str
    make: Callable[[Linears], nn.Module]
    prefixes: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    states: tuple[State, ...] = ()

    def tensor_name(self, parameter: str) -> str:
        """Name in the checkpoint of the module's parameter `parameter`."""
        start = max((p for p in self.prefixes if parameter.startswith(p)), key=len)
        return self.prefixes[start] + parameter.removeprefix(start)


@dataclass(frozen=True)
class ModelGraph:
    """An ordered chain of blocks over named values; `inputs` and `outputs` are the graph's border."""

    name: str
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def states(self) -> tuple[State, ...]:
        """All states, in block order."""
        return tuple(state for block in self.blocks for state in block.states)


def values(*items: Value) -> dict[str, Value]:
    """Values by name."""
    return {item.name: item for item in items}


def activation(name: str, *axes: str | int) -> Value:
    """A value in the activation dtype."""
    return Value(name, ACT, axes)
