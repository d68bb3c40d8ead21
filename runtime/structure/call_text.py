"""The text of a parameter inside a tool call: where it ends, and what it may not hold.

A value is free text up to a closing tag on a line of its own. What a reader of calls would take for another end of
the value, or for a call quoted in it, may not come: a tag that opens a parameter or function at the beginning of a
line, and the call's other tags where they follow each other. Documents that hold such tags in their own order pass.
All of it is found by one automaton over bytes, so almost every token is judged without looking at the vocabulary.
"""

from __future__ import annotations

import string
import threading
from bisect import bisect_left
from collections.abc import Iterator

from deltart.runtime.structure.states import State, Then
from deltart.runtime.structure.vocabulary import Mask, Vocabulary

CLOSE_PARAMETER = "\n</parameter>\n"

# A pattern is a sequence of bytes and of sets of bytes; a set stands for any number of its members.
_Pattern = tuple[int | frozenset[int], ...]
_Items = frozenset[tuple[int, int]]  # pattern, and how much of it has been read

_BLANKS = frozenset(b" \t")
# White space beyond ASCII is any row of the bytes that it is written with: that is simple, and hardly more.
_WIDE = "".join(character for character in map(chr, range(0x80, 0x10000)) if character.isspace())
_SPACES = frozenset([*string.whitespace.encode(), *range(0x1C, 0x20), *_WIDE.encode()])
_ANYTHING = frozenset(range(0x100))  # up to the next </parameter>, which makes the tags before it part of the value
_LINE = (b"\n", _BLANKS)
_CLOSE, _FUNCTION_END = b"</parameter>", b"</function>"
_CALLS = (b"</tool_call>", b"<tool_call>")
_OPENING = (b"<parameter=", b"<function=")
_QUIET = ord("Q")  # begins no tag
_ENDED, _BAD = -1, -2
_FEW = 16  # tokens that are sooner read than parted


def _pattern(*parts: bytes | frozenset[int]) -> _Pattern:
    return tuple(item for part in parts for item in ([part] if isinstance(part, frozenset) else part))


_PATTERNS = (
    _pattern(CLOSE_PARAMETER.encode()),
    _pattern(_CLOSE),
    *(_pattern(*_LINE, tag) for tag in _OPENING),
    *(_pattern(_CLOSE, _SPACES, tag) for tag in (*_CALLS, *_OPENING)),
    *(_pattern(_CLOSE, _ANYTHING, *_LINE, tag) for tag in _CALLS),
    *(_pattern(_CLOSE, _ANYTHING, _FUNCTION_END, _ANYTHING, tag) for tag in _CALLS),
    _pattern(_CLOSE, _ANYTHING, _FUNCTION_END, _ANYTHING, *_LINE, _FUNCTION_END),
    *(_pattern(_FUNCTION_END, _SPACES, tag) for tag in (*_CALLS, *_OPENING)),
    _pattern(b"</tool_call>", _SPACES, b"<tool_call>"),
    _pattern(b"<tool_call>", _SPACES, b"<function="),
)
_END, _RESET = 0, 1  # of the patterns, those whose completion is no fault


class CallText:
    """The automaton, and its masks over a vocabulary; shared by all values, in any thread.

    A place is a number. Places and masks are worked out where they are first met and kept: there are some hundreds.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # of new places
        self._items: list[_Items] = []
        self._numbers: dict[_Items, int] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self._masks: dict[int, Mask] = {}
        self._openings: dict[int, list[tuple[int, int]]] = {}
        text = vocabulary.members(vocabulary.text_mask)
        self._is_text = frozenset(text)
        self._sorted = sorted((vocabulary.pieces[token], token) for token in text)
        self._pieces = [piece for piece, _ in self._sorted]
        plain = self._number(_closed({(index, 0) for index in range(len(_PATTERNS))}))
        self.start = self._step(plain, ord("\n"))  # a value begins on a line of its own
        self._tagged = [(piece, token) for piece, token in self._sorted if b"<" in piece and len(piece) >= 10]

    def warm(self) -> None:
        """Work out the masks on the way to a closing tag, so that no reply has to wait for them."""
        for text in (CLOSE_PARAMETER[1:], f"a{CLOSE_PARAMETER}"):
            place = self.start
            for byte in text.encode()[:-1]:
                self.mask(place)
                place = self._step(place, byte)
            self.mask(place)

    def openings(self, last: int) -> list[tuple[int, int]]:
        """Tokens that begin as `last` does, the last token of the opening tag, and go on into the text; and where."""
        if last not in self._openings:
            self._openings[last] = list(self._longer(self._vocabulary.pieces[last]))
        return self._openings[last]

    def _longer(self, head: bytes) -> Iterator[tuple[int, int]]:
        for piece, token in self._sorted[bisect_left(self._pieces, head) :]:
            if not piece.startswith(head):
                return
            place = self._walk(self.start, piece[len(head) :])
            if len(piece) > len(head) and place is not None and place != _ENDED:
                yield token, place

    def after(self, place: int, token: int) -> int | None:
        """The place after `token`; None where it may not come."""
        return self._walk(place, self._vocabulary.pieces[token]) if token in self._is_text else None

    @staticmethod
    def ended(place: int) -> bool:
        """Whether the closing tag is complete."""
        return place == _ENDED

    def mask(self, place: int) -> Mask:
        """The tokens that may come at `place`."""
        if place not in self._masks:
            rest = self._step(place, _QUIET)
            if rest == place:
                base = self._vocabulary.text_mask
                refused = [token for piece, token in self._tagged if self._walk(place, piece) is None]
            else:
                base = self.mask(rest)
                refused = list(self._refused(b"", (0, len(self._pieces)), place, rest))
            self._masks[place] = base & ~self._vocabulary.mask(refused)
        return self._masks[place]

    def _walk(self, place: int, piece: bytes) -> int | None:
        for index, byte in enumerate(piece):
            place = self._step(place, byte)
            if place == _BAD or (place == _ENDED and index + 1 < len(piece)):
                return None
            if place == _ENDED:
                return place
        return place

    def _step(self, place: int, byte: int) -> int:
        if (place, byte) not in self._steps:
            with self._lock:
                self._steps[place, byte] = self._next(self._items[place], byte)
        return self._steps[place, byte]

    def _next(self, items: _Items, byte: int) -> int:
        read = {(index, 0) for index in range(len(_PATTERNS))}
        for index, at in items:
            item = _PATTERNS[index][at]
            if isinstance(item, frozenset):
                read |= {(index, at)} if byte in item else set()
            elif item == byte:
                read.add((index, at + 1))
        complete = {index for index, at in read if at == len(_PATTERNS[index])}
        if complete - {_RESET}:
            return _ENDED if _END in complete else _BAD
        if complete:
            read = {(index, at) for index, at in read if at < len(_PATTERNS[index]) and not _is_behind(index, at)}
        return self._number(_closed(read))

    def _number(self, items: _Items) -> int:
        if items not in self._numbers:
            self._numbers[items] = len(self._items)
            self._items.append(items)
        return self._numbers[items]

    def _refused(self, prefix: bytes, within: tuple[int, int], place: int, rest: int) -> Iterator[int]:
        """Tokens that begin with `prefix` and may not come, though they might if no tag had been begun.

        `within` are their positions among the sorted ones; `place` and `rest` are where the prefix leads with and
        without what was begun. Where the two are the same, so is all that follows.
        """
        for byte in sorted(self._wanted(place)):
            following, usual = self._step(place, byte), self._step(rest, byte)
            if following == usual:
                continue
            longer = prefix + bytes([byte])
            first = bisect_left(self._pieces, longer, *within)
            last = bisect_left(self._pieces, prefix + bytes([byte + 1]), *within) if byte < 255 else within[1]
            if following == _BAD:
                yield from (token for _, token in self._sorted[first:last])
            elif following == _ENDED:
                yield from (token for piece, token in self._sorted[first:last] if len(piece) > len(longer))
            elif last - first <= _FEW:
                tokens = self._sorted[first:last]
                yield from (token for piece, token in tokens if self._walk(following, piece[len(longer) :]) is None)
            else:
                yield from self._refused(longer, (first, last), following, usual)

    def _wanted(self, place: int) -> set[int]:
        """The bytes that go on with what was begun at `place`."""
        wanted: set[int] = set()
        for index, at in self._items[place]:
            item = _PATTERNS[index][at]
            if item is not _ANYTHING:
                wanted |= item if isinstance(item, frozenset) else {item}
        return wanted


def _is_behind(index: int, at: int) -> bool:
    """Whether a pattern has been read beyond the first place where anything may stand."""
    return any(item is _ANYTHING for item in _PATTERNS[index][:at])


def _closed(items: set[tuple[int, int]]) -> _Items:
    """The items, and those behind sets, which may stand for nothing."""
    passed = {(index, at + 1) for index, at in items if isinstance(_PATTERNS[index][at], frozenset)}
    return frozenset(items | passed)  # no two sets stand side by side


class TextValue:
    """Inside a parameter's free text."""

    finished = False

    def __init__(self, text: CallText, place: int, then: Then) -> None:
        self._text, self._place, self._then = text, place, then

    def allowed(self) -> Mask | None:
        """See State."""
        return self._text.mask(self._place)

    def after(self, token: int) -> State | None:
        """See State."""
        place = self._text.after(self._place, token)
        if place is None:
            return None
        return self._then() if self._text.ended(place) else TextValue(self._text, place, self._then)
