"""Typed, strict reading of a JSON object: every problem names the file and the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from deltart.errors import ConfigError
from deltart.json_files import shown

V = TypeVar("V")
LARGEST = 2**31 - 1  # of a size or count


class Fields:
    """A JSON object and where it came from."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def section(self, name: str) -> Fields:
        """The nested object `name`; raises ConfigError when absent."""
        return Fields(self.required(name, dict), f"{self._where}: {name}")

    def required(self, name: str, kind: type[V]) -> V:
        """Field `name` as `kind` (ints are accepted for float); raises ConfigError when absent or of another type."""
        if name not in self:
            raise ConfigError(f"{self._where}: field '{name}' is missing", f"a {kind.__name__}", "add it to the config")
        value: Any = self._values[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
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
