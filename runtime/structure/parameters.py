"""Parameters of tool calls: what may stand between a parameter's tags, by its schema.

The family writes strings as they are and everything else as JSON. So a plain string is free text, a choice of words
is those words, and the rest is a grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deltart.errors import GenerationError
from deltart.runtime.structure.call_text import CLOSE_PARAMETER
from deltart.runtime.structure.schema import STANDARD_FORMATS, prepared
from deltart.runtime.structure.vocabulary import load_llguidance

Json = Any

_STRING = ("pattern", "minLength", "maxLength", "format")
# Keywords of the other types, which say nothing about a string.
_OBJECT = frozenset({
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
    "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties",
})  # fmt: skip
_ARRAY = frozenset({
    "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains",
    "maxContains", "unevaluatedItems",
})  # fmt: skip
_NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
# All that constrain a value. JSON Schema has any other keyword pass.
KEYWORDS = _OBJECT | _ARRAY | _NUMBER | {
    *_STRING, "type", "enum", "const", "$ref", "$dynamicRef", "anyOf", "oneOf", "allOf", "not", "if", "then", "else",
}  # fmt: skip
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}
_DATE, _TIME = (
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
)
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,8}}",
    "email": rf"[A-Za-z0-9!#$%&'*+=?^_`{{|}}~-]+(\.[A-Za-z0-9!#$%&'*+=?^_`{{|}}~-]+)*@{_LABEL}(\.{_LABEL}){{0,8}}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+",
}


@dataclass(frozen=True)
class Value:
    """What a parameter may be: any of these.

    Attributes:
        text: any text.
        words: exactly one of them.
        schemas: JSON that is valid under one of them, prepared.
        patterns: text that a terminal of llguidance's Lark dialect describes.
        skipped: what is not enforced, in words.
    """

    text: bool = False
    words: tuple[str, ...] = ()
    schemas: tuple[Json, ...] = ()
    patterns: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __or__(self, other: Value) -> Value:
        return Value(
            self.text or other.text, self.words + other.words, self.schemas + other.schemas,
            self.patterns + other.patterns, self.skipped + other.skipped,
        )  # fmt: skip

    @property
    def listed(self) -> bool:
        """Whether `words` say it all."""
        return not (self.text or self.schemas or self.patterns)

    @property
    def is_json(self) -> bool:
        """Whether what looks like a number is one of JSON's."""
        return bool(self.schemas) and not (self.patterns or any(map(str.isdigit, "".join(self.words))))

    def grammar(self) -> str:
        """In llguidance's Lark dialect, up to and with the closing tag. Not for free text."""
        rules, names = ["%llguidance {}"], [json.dumps(word, ensure_ascii=False) for word in self.words]
        for index, schema in enumerate(self.schemas):
            rules.append(f"json_{index}: %json {json.dumps(schema, ensure_ascii=False)}")
            names.append(f"json_{index}")
        close = json.dumps(CLOSE_PARAMETER)
        alternatives = [f"({' | '.join(names)}) {close}"] if names else []
        for index, pattern in enumerate(self.patterns):
            # One terminal with its tag: a text of its own would swallow the tag's newline.
            rules.append(f"TEXT_{index}: ({pattern} & ~/(?s:.*)<\\/parameter>(?s:.*)/) {close}")
            alternatives.append(f"TEXT_{index}")
        return "\n".join([*rules, f"start: {' | '.join(alternatives)}"])


class ParameterReader:
    """Reads the schemas of one function's parameters.

    Args:
        where: names the function in messages.
        root: schema of all the parameters, to which `$ref`s point.
        strict: refuse what can't be enforced to the letter; otherwise it is listed in `skipped`.
    """

    def __init__(self, where: str, root: Mapping[str, Json], strict: bool) -> None:
        self._where, self._root, self._strict = where, root, strict

    def read(self, schema: Json, where: str, followed: frozenset[str] = frozenset()) -> Value:
        """What a parameter may be.

        Raises:
            GenerationError: nothing is valid under the schema, or strict and beyond what can be enforced.
        """
        if schema is False:
            self._refuse(f"{where}: false, which allows nothing")
        if not isinstance(schema, Mapping):
            return Value(text=True)
        keys = KEYWORDS & set(schema)
        # OpenAPI's word, which JSON Schema does not know.
        null = Value(words=("null",)) if schema.get("nullable") is True and not self._strict else Value()
        return null | self._of(schema, keys, where, followed)

    def _of(self, schema: Mapping[str, Json], keys: frozenset[str], where: str, followed: frozenset[str]) -> Value:
        if keys & {"const", "enum"}:
            return self._words(schema, where) | self._beside(keys - {"const", "enum", "type"}, where)
        if "$ref" in keys:
            return self._referred(schema["$ref"], where, followed) | self._beside(keys - {"$ref"}, where)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in keys:
                return self._combined(key, schema, keys - {key, "type"}, where, followed)
        types = schema.get("type", _implied(keys))
        names = types if isinstance(types, list) else [types]
        rest = [name for name in names if name != "string"]
        found = self._json({**schema, "type": rest}) if rest else Value()
        return found | self._string(schema, keys, where) if "string" in names else found

    def _json(self, schema: Mapping[str, Json]) -> Value:
        """JSON under a schema, with what its references may point to."""
        shared = {key: self._root[key] for key in ("$defs", "definitions", "$schema") if key in self._root}
        made, skipped = prepared({**schema, **shared}, self._strict)
        return Value(schemas=(made,), skipped=tuple(f"{self._where}: {what}" for what in skipped))

    def _words(self, schema: Mapping[str, Json], where: str) -> Value:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        types = schema.get("type")
        if isinstance(types, str | list) and isinstance(values, list):
            fitting = [value for value in values if _kinds(value) & {*([types] if isinstance(types, str) else types)}]
            values = fitting if fitting or self._strict else values
        if not isinstance(values, list) or not values:
            self._refuse(f"{where}/enum, which allows nothing")
        texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        return Value(words=tuple(dict.fromkeys(texts)))

    def _referred(self, reference: Json, where: str, followed: frozenset[str]) -> Value:
        node: Json = self._root
        for part in str(reference).removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            node = node.get(name) if isinstance(node, Mapping) else None
        if node is None or reference in followed:
            self._refuse(f"{where}/$ref to {reference!r}")
        return self.read(node, str(reference), followed | {str(reference)})

    def _combined(
        self, key: str, schema: Mapping[str, Json], beside: frozenset[str], where: str, followed: frozenset[str]
    ) -> Value:
        options = schema[key]
        if not isinstance(options, list) or not options:
            self._refuse(f"{where}/{key}, which allows nothing")
        found = Value()
        for index, option in enumerate(options):
            found |= self.read(option, f"{where}/{key}/{index}", followed)
        if not found.text and not found.words and not found.patterns:
            return self._json(schema)  # llguidance reads it all
        exact = key == "anyOf" or len(options) == 1
        return found | self._beside(beside if exact else beside | {key}, where)

    def _string(self, schema: Mapping[str, Json], keys: frozenset[str], where: str) -> Value:
        own = [key for key in _STRING if key in keys]
        beside = self._beside(keys - {"type", *_STRING} - _OBJECT - _ARRAY - _NUMBER, where)
        if "format" in own and schema["format"] not in STANDARD_FORMATS:
            own.remove("format")
            beside |= Value(skipped=(f"{self._where}: format {schema['format']!r} at {where} is not enforced",))
        if own and self._strict:
            return beside | Value(patterns=(self._terminal(schema, own, where),))
        return beside | Value(text=True) | self._beside(own, where)

    def _terminal(self, schema: Mapping[str, Json], keys: list[str], where: str) -> str:
        parts = ["/(?s:.*)/"]
        if "minLength" in keys or "maxLength" in keys:
            parts.append(f"/(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})/")
        if "format" in keys:
            if schema["format"] not in _FORMATS:
                self._refuse(f"{where}/format = {schema['format']!r}")
            parts.append(_regex(_FORMATS[schema["format"]]))
        if "pattern" in keys:
            parts.append(_regex(self._searching(str(schema["pattern"]), where)))
        return " & ".join(parts)

    def _searching(self, pattern: str, where: str) -> str:
        """A pattern for the whole text from one that is to be found anywhere in it."""
        begins, ends = pattern.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$\Z", pattern) is not None
        body = pattern[begins : len(pattern) - ends]
        anchored = begins or ends
        if re.search(r"(?<![\\\[])[\^$]", body) or (anchored and "|" in body and not _enclosed(body)):
            self._refuse(f"{where}/pattern = {pattern!r}, with ^ or $ inside")
        return ("" if begins else "(?s:.*)") + f"({body})" + ("" if ends else "(?s:.*)")

    def _beside(self, keys: Iterable[str], where: str) -> Value:
        """Keywords that are passed over."""
        places = [f"{where}/{key}" for key in sorted(keys)]
        if places and self._strict:
            self._refuse(places[0])
        return Value(skipped=tuple(f"{self._where}: {place} is not enforced" for place in places))

    def _refuse(self, what: str) -> None:
        raise GenerationError(
            f"{self._where} has {what}", "parameters whose values can be enforced", "change it, or do without strict"
        )


def _implied(keys: frozenset[str]) -> str:
    """The type of a schema that names none: what its keywords are about, or a string."""
    kinds = {"object": _OBJECT, "array": _ARRAY, "number": _NUMBER}
    return next((name for name, about in kinds.items() if keys & about), "string")


def _kinds(value: Json) -> set[str]:
    """The types of a JSON value."""
    kind = _KINDS.get(type(value), "object")
    whole = kind == "integer" or (isinstance(value, float) and value.is_integer())
    return {kind, "number", "integer"} if whole else {kind}


def _regex(pattern: str) -> str:
    """A regular expression of JSON Schema as a terminal."""
    return f"/{load_llguidance().regex_to_lark(pattern, 'dw')}/"


def _enclosed(body: str) -> bool:
    """Whether every | of a pattern stands inside a group or class."""
    depth = 0
    for found in re.finditer(r"\\.|\[(?:\\.|[^\]])*\]|[()|]", body):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if found[0] == "|" and depth == 0:
            return False
    return True
