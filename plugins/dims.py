"""Arithmetic on TensorRT's symbolic dimensions, as far as an op's contract needs it: sums and products."""

from __future__ import annotations

from typing import Any


class Dim:
    """A TensorRT dimension expression that adds and multiplies with integers and its like."""

    def __init__(self, value: Any, builder: Any, add: Any, multiply: Any) -> None:
        self.value, self._builder, self._add, self._multiply = value, builder, add, multiply

    def __add__(self, other: Dim | int) -> Dim:
        return self if _is(other, 0) else self._combine(self._add, other)

    def __mul__(self, other: Dim | int) -> Dim:
        return self if _is(other, 1) else self._combine(self._multiply, other)

    __radd__, __rmul__ = __add__, __mul__

    def _combine(self, operation: Any, other: Dim | int) -> Dim:
        value = self._builder.operation(operation, self.value, expression(other, self._builder))
        return Dim(value, self._builder, self._add, self._multiply)


def expression(size: Dim | int, builder: Any) -> Any:
    """TensorRT's expression of `size`."""
    return size.value if isinstance(size, Dim) else builder.constant(size)


def _is(size: Dim | int, number: int) -> bool:
    return isinstance(size, int) and size == number
