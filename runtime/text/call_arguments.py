"""The arguments of one call, as a mapping and, piece by piece, as JSON text."""

from __future__ import annotations

import json
from typing import Any

from deltart.runtime.text.tool_arguments import Schema, coerce, is_text


class ArgumentsWriter:
    """Takes the text between the parameter tags and types it by the tool's schema.

    The newline after an opening tag and the one before a closing tag belong to the tags.

    Args:
        schema: JSON schema of the tool's parameters.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._arguments: dict[str, Any] = {}
        self._json: list[str] = []  # written and not yet taken
        self._name: str | None = None  # of the open value
        self._parts: list[str] = []
        self._streams = False  # the value is a string whatever its text, so its JSON grows with it
        self._newline = ""  # held: it may belong to the closing tag
        self._fresh = True  # nothing of the value has come

    def __contains__(self, name: str) -> bool:
        return name in self._arguments or name == self._name

    def open(self, name: str) -> None:
        """Begin the value of parameter `name`."""
        self._json.append((", " if self._arguments else "{") + json.dumps(name, ensure_ascii=False) + ": ")
        self._name, self._parts, self._newline = name, [], ""
        self._streams, self._fresh = is_text(name, self._schema), True
        if self._streams:
            self._json.append('"')

    def text(self, piece: str) -> None:
        """The next piece of the value."""
        if not piece:
            return
        if self._fresh:
            piece, self._fresh = piece.removeprefix("\n"), False
        piece = self._newline + piece
        self._newline = "\n" if piece.endswith("\n") else ""
        piece = piece.removesuffix("\n")
        self._parts.append(piece)
        if self._streams:
            self._json.append(_escaped(piece))

    def close(self) -> None:
        """End the value."""
        text, name = "".join(self._parts), str(self._name)
        value = text if self._streams else coerce(text, name, self._schema)
        self._arguments[name], self._name = value, None
        self._json.append('"' if self._streams else json.dumps(value, ensure_ascii=False))

    def finish(self) -> dict[str, Any]:
        """All arguments; nothing can be added any more."""
        self._json.append("}" if self._arguments else "{}")
        return self._arguments

    def take(self) -> str:
        """The JSON text written since the last call of this."""
        written, self._json = "".join(self._json), []
        return written


def _escaped(text: str) -> str:
    """`text` as it stands inside a JSON string: character by character, so that pieces may be joined."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
