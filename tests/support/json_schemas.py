"""Random JSON schemas of the kinds that clients send, small enough for a reply of a few hundred tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = ("id", "name", "city", "days", "tags", "price", "ok", "note", "when", "items", "unit", "x-y", "größe", "a b")
_WORDS = ("red", "green", "sehr gut", 'quo"te', "back\\slash", "new\nline", "é", "<think>", "</tool_call>", "", "日本")
_PATTERNS = ("^[A-Z]{2}-[0-9]{3}$", "^(a|b)+$", "[0-9]", "^\\w{1,8}$", "^$|^x", "é{2}", "^.{3}$")
_FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "email", "hostname", "uri", "no-such-format")


class SchemaMaker:
    """Makes schemas that llguidance enforces to the letter.

    Args:
        deepest: how many objects and arrays may stand inside each other.
    """

    def __init__(self, seed: int, deepest: int = 3) -> None:
        self._rng, self._deepest = random.Random(seed), deepest
        self._defs: Schema = {}

    def schema(self) -> Schema:
        """The next schema, an object as a rule."""
        self._defs = {}
        made = self._object(0) if self._rng.random() < 0.7 else self._any(0)
        return {**made, "$defs": self._defs} if self._defs else made

    def _any(self, depth: int) -> Schema:
        flat: list[Callable[[], Schema]] = [
            self._text, self._integer, self._number, self._choice,
            lambda: {"type": "boolean"}, lambda: {"type": "null"},
            lambda: {"type": self._rng.sample(["string", "integer", "null", "boolean"], 2)},
        ]  # fmt: skip
        deep: list[Callable[[], Schema]] = [
            lambda: self._object(depth + 1), lambda: self._array(depth + 1), lambda: self._union(depth + 1),
            lambda: self._reference(depth + 1), lambda: self._both(depth + 1),
        ]  # fmt: skip
        return self._rng.choice(flat + deep if depth < self._deepest else flat)()

    def _object(self, depth: int) -> Schema:
        names = self._rng.sample(_NAMES, self._rng.randrange(0, 5))
        made: Schema = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        made["required"] = [name for name in names if self._rng.random() < 0.6]
        match self._rng.randrange(4):
            case 0:
                made["additionalProperties"] = {"type": "integer"}
            case 1 if not names:
                made = {"type": "object", "patternProperties": {"^k_[a-z]{1,3}$": {"type": "boolean"}}}
                made |= {"additionalProperties": False, "minProperties": self._rng.randrange(2)}
            case _:
                made["additionalProperties"] = False
        return made

    def _array(self, depth: int) -> Schema:
        low = self._rng.randrange(0, 3)
        if self._rng.random() < 0.25:
            first = [self._any(depth) for _ in range(2)]
            return {"type": "array", "prefixItems": first, "items": self._rng.choice([False, {"type": "null"}])}
        return {"type": "array", "items": self._any(depth), "minItems": low, "maxItems": low + self._rng.randrange(3)}

    def _union(self, depth: int) -> Schema:
        key = self._rng.choice(["anyOf", "anyOf", "oneOf"])
        if key == "oneOf":
            return {"oneOf": [{"type": "integer"}, self._array(depth), {"type": "null"}]}
        return {"anyOf": [self._any(depth) for _ in range(self._rng.randrange(1, 4))]}

    def _both(self, depth: int) -> Schema:
        name = self._rng.choice(_NAMES)
        left = {"type": "object", "properties": {name: self._any(depth)}, "required": [name]}
        return {"allOf": [left, {"properties": {"more": {"type": "integer"}}}]}

    def _reference(self, depth: int) -> Schema:
        name = self._rng.choice(("node", "other"))
        if name not in self._defs:
            self._defs[name] = {}  # it may refer to itself
            child = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
            self._defs[name] = {"type": "object", "properties": {"v": self._any(depth), "next": child}}
            self._defs[name] |= {"required": ["v"], "additionalProperties": False}
        return {"$ref": f"#/$defs/{name}"}

    def _text(self) -> Schema:
        match self._rng.randrange(5):
            case 0:
                return {"type": "string", "pattern": self._rng.choice(_PATTERNS)}
            case 1:
                return {"type": "string", "format": self._rng.choice(_FORMATS)}
            case 2:
                low = self._rng.randrange(4)
                return {"type": "string", "minLength": low, "maxLength": low + self._rng.randrange(6)}
            case _:
                return {"type": "string"}

    def _choice(self) -> Schema:
        values: list[Any] = [*self._rng.sample(_WORDS, 2), self._rng.randrange(-9, 9), None, {"k": [1.5, True]}]
        if self._rng.random() < 0.3:
            return {"const": self._rng.choice(values)}
        return {"enum": self._rng.sample(values, self._rng.randrange(1, 5))}

    def _integer(self) -> Schema:
        low = self._rng.randrange(-1000, 1000)
        return self._rng.choice([
            {"type": "integer"}, {"type": "integer", "minimum": low, "maximum": low + self._rng.randrange(500)},
            {"type": "integer", "multipleOf": self._rng.choice([2, 7, 25])},
            {"type": "integer", "exclusiveMinimum": low},
        ])  # fmt: skip

    def _number(self) -> Schema:
        low = round(self._rng.uniform(-50, 50), 2)
        return self._rng.choice(
            [{"type": "number"}, {"type": "number", "minimum": low, "exclusiveMaximum": low + 7.25}]
        )
