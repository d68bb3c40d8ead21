"""The tags of tool calls in a stream of text, and the text between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from deltart.runtime.text.stops import held_back

LONGEST_NAME = 256  # characters of a function's or parameter's name; a longer one is no tag

_FIXED = ("<tool_call>", "</tool_call>", "</function>", "</parameter>")
_NAMED = ("<function=", "<parameter=")
_TAG = re.compile(
    r"(?P<OPEN_CALL><tool_call>)|(?P<CLOSE_CALL></tool_call>)"
    rf"|<function=(?P<OPEN_FUNCTION>[^<>\n]{{1,{LONGEST_NAME}}})>|(?P<CLOSE_FUNCTION></function>)"
    rf"|<parameter=(?P<OPEN_PARAMETER>[^<>\n]{{1,{LONGEST_NAME}}})>|(?P<CLOSE_PARAMETER></parameter>)"
    r"|(?P<BROKEN><(?:function|parameter)=)"
)
_NAME_TO_COME = re.compile(rf"<(?:function|parameter)=[^<>\n]{{0,{LONGEST_NAME}}}\Z")


class Kind(Enum):
    """What a token is. BROKEN is the beginning of a named tag whose name does not end on its line."""

    TEXT = auto()
    OPEN_CALL = auto()
    CLOSE_CALL = auto()
    OPEN_FUNCTION = auto()
    CLOSE_FUNCTION = auto()
    OPEN_PARAMETER = auto()
    CLOSE_PARAMETER = auto()
    BROKEN = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """A tag, or a piece of text, as it was written; `name` is that of a function or parameter."""

    kind: Kind
    raw: str
    name: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether this is white space between tags."""
        return self.kind is Kind.TEXT and not self.raw.strip()


class Lexer:
    """Splits a stream into tokens. Tags do not depend on how the stream is cut; texts do, but not what they add up to.

    Each character is looked at a bounded number of times, however small the pieces are.
    """

    def __init__(self) -> None:
        self._held = ""  # may be the beginning of a tag

    def push(self, text: str) -> list[Token]:
        """The tokens that are certain."""
        text = self._held + text
        end = len(text) - _possible_tag(text)
        self._held = text[end:]
        return _tokens(text[:end])

    def finish(self) -> list[Token]:
        """The tokens held back, once no more text will come."""
        held, self._held = self._held, ""
        return _tokens(held)


def _possible_tag(text: str) -> int:
    """Length of the end of `text` that more text may turn into a tag."""
    last = text.rfind("<")
    if last < 0:
        return 0
    return len(text) - last if _NAME_TO_COME.match(text, last) else held_back(text[last:], _FIXED + _NAMED)


def _tokens(text: str) -> list[Token]:
    tokens, at = [], 0
    for found in _TAG.finditer(text):
        if found.start() > at:
            tokens.append(Token(Kind.TEXT, text[at : found.start()]))
        kind = Kind[str(found.lastgroup)]
        name = found[kind.name].strip() if kind in (Kind.OPEN_FUNCTION, Kind.OPEN_PARAMETER) else ""
        tokens.append(Token(kind, found[0], name))
        at = found.end()
    return [*tokens, Token(Kind.TEXT, text[at:])] if at < len(text) else tokens
