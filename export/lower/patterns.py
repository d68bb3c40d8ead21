"""Trees of nodes to look for in a graph, and the one walk that finds them.

    match(Op("Mul", (Value("x"), Op("Sigmoid", (Value("x"),))), any_order=True), name, producers)

finds what makes `name` as x * sigmoid(x), and says which value x is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import onnx

Producers = Mapping[str, onnx.NodeProto]  # by the values they make


@dataclass(frozen=True)
class Value:
    """Any value, captured under `name`; it is the same one wherever the name occurs.

    Args:
        stored: no node makes it.
        uncast: what is captured is the value that casts were made of.
    """

    name: str
    stored: bool = False
    uncast: bool = False


@dataclass(frozen=True)
class Constant:
    """A constant list of integers, captured under `name`."""

    name: str


@dataclass(frozen=True)
class Op:
    """A node of `type` whose first inputs match.

    Args:
        name: captures the node; it is the same one wherever the name occurs.
        any_order: of the inputs.
        when: what else must hold of the node.
    """

    type: str
    inputs: tuple[Value | Constant | Op, ...]
    name: str = ""
    any_order: bool = False
    when: Callable[[onnx.NodeProto], bool] = lambda node: True


@dataclass(frozen=True)
class Match:
    """What a pattern captured, by name."""

    values: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, onnx.NodeProto] = field(default_factory=dict)
    constants: Mapping[str, list[int]] = field(default_factory=dict)


def match(pattern: Op, value: str, producers: Producers, through_casts: bool = False) -> Match | None:
    """The first way in which `value` is made as `pattern` says, or None. `through_casts` passes over all Cast nodes."""
    return next(_Walk(producers, through_casts).of(pattern, value, Match()), None)


@dataclass(frozen=True)
class _Walk:
    producers: Producers
    through_casts: bool

    def of(self, pattern: Value | Constant | Op, value: str, known: Match) -> Iterator[Match]:
        """Every way in which `value` fits `pattern` beside what is captured already."""
        if isinstance(pattern, Value):
            yield from self._of_value(pattern, value, known)
            return
        node = self.producers.get(self._uncast(value) if self.through_casts else value)
        if node is None:
            return
        if isinstance(pattern, Op):
            yield from self._of_node(pattern, node, known)
        elif node.op_type == "Constant":
            found: list[int] = onnx.numpy_helper.to_array(node.attribute[0].t).tolist()
            yield replace(known, constants={**known.constants, pattern.name: found})

    def _of_value(self, pattern: Value, value: str, known: Match) -> Iterator[Match]:
        name = self._uncast(value) if pattern.uncast else value
        made = name in self.producers
        if known.values.get(pattern.name, name) == name and not (pattern.stored and made):
            yield replace(known, values={**known.values, pattern.name: name})

    def _of_node(self, pattern: Op, node: onnx.NodeProto, known: Match) -> Iterator[Match]:
        fits = node.op_type == pattern.type and len(node.input) >= len(pattern.inputs) and pattern.when(node)
        if not fits or known.nodes.get(pattern.name, node) is not node:
            return
        if pattern.name:
            known = replace(known, nodes={**known.nodes, pattern.name: node})
        for inputs in permutations(node.input) if pattern.any_order else (tuple(node.input),):
            yield from self._of_all(pattern.inputs, inputs, known)

    def _of_all(
        self, patterns: Sequence[Value | Constant | Op], values: Sequence[str], known: Match
    ) -> Iterator[Match]:
        if not patterns:
            yield known
            return
        for found in self.of(patterns[0], values[0], known):
            yield from self._of_all(patterns[1:], values[1:], found)

    def _uncast(self, name: str) -> str:
        while (node := self.producers.get(name)) is not None and node.op_type == "Cast":
            name = node.input[0]
        return name
