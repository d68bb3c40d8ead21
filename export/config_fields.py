"""Typed, strict reading of a JSON object: every problem names the file and the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from deltart.errors import ConfigError
from deltart.json_files import shown

V = TypeVar("V")
LARGEST = 2**31 - 1  # of a size or count


class Fields:
    """A JSON object and where it came from.

    Args:
        defaults: what fields that are not there stand for; one that is there as null is missing all the same.

    Attributes:
        values: the object itself.
        taken: the defaults that were taken.
    """

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values, self._where = values, where
        self._values = {**(defaults or {}), **values}
        self.taken: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def is_given(self, name: str) -> bool:
        """Whether the object itself has a field `name` that is not null."""
        return self.values.get(name) is not None

    def place(self, name: str) -> str:
        """Where field `name` is, for messages."""
        return f"{self._where}: {name}"

    def section(self, name: str, defaults: Mapping[str, Any] | None = None) -> Fields:
        """The nested object `name`; raises ConfigError when absent."""
        return Fields(self.required(name, dict), self.place(name), defaults)

    def required(self, name: str, kind: type[V]) -> V:
        """Field `name` as `kind` (ints are accepted for float); raises ConfigError when absent or of another type."""
        if name in self._values and name not in self.values:
            self.taken[name] = self._values[name]
        if name not in self:
            raise ConfigError(f"{self._where}: field '{name}' is missing", f"a {kind.__name__}", "add it to the config")
        value: Any = self._values[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST**2:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(name, value, f"a {kind.__name__}")
        return value

    def positive(self, name: str) -> int:
        """Field `name` as an int from 1 to LARGEST."""
        value = self.required(name, int)
        if not 1 <= value <= LARGEST:
            raise self.error(name, value, f"an integer of at least 1 and at most {LARGEST}")
        return value

    def number(self, name: str, low: float, high: float = math.inf, *, above: bool = False) -> float:
        """Field `name` as a finite float from `low` (or above it) to `high`."""
        value = self.required(name, float)
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            bounds = f"{'above' if above else 'of at least'} {low:g}" + (
                "" if high == math.inf else f", at most {high:g}"
            )
            raise self.error(name, value, f"a number {bounds}")
        return value

    def optional(self, name: str, kind: type[V], absent: V) -> V:
        """Field `name` as `kind`, or `absent` where the format itself defines what leaving it out means."""
        return self.required(name, kind) if name in self else absent

    def one_of(self, name: str, allowed: Sequence[Any]) -> Any:
        """Field `name`, restricted to `allowed`."""
        value = self.required(name, object)
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise self.error(name, value, " or ".join(repr(a) for a in allowed))
        return value

    def only_if_present(self, name: str, allowed: Sequence[Any]) -> None:
        """Raise ConfigError when field `name` is given with a value the graph does not implement."""
        if name in self:
            self.one_of(name, allowed)

    def error(self, name: str, value: Any, expected: str) -> ConfigError:
        """A ConfigError about field `name`."""
        return ConfigError(
            f"{self._where}: field '{name}' is {shown(value)}", expected, "this graph depends on it: correct the config"
        )
