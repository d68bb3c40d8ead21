"""Numbers in JSON that every reader has a place for: those below 10 ** 308.

JSON bounds neither digits nor exponents, and a model that goes on with either makes a number which a client reads as
infinite or not at all (RFC 8259, section 6). An automaton over bytes follows the text, so that the digit too many is
never drawn.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from deltart.runtime.structure.vocabulary import Mask, Vocabulary

_POWER = 308  # of ten, which no number reaches; float64 ends at 1.8e308
_QUOTE, _ESCAPE, _MINUS, _POINT = b'"\\-.'
_DIGITS, _MARKS = frozenset(b"0123456789"), frozenset(b"eE")


class Place(NamedTuple):
    """Where a text is.

    Attributes:
        where: between values, in a string or behind its backslash, in a number's whole part, fraction or exponent, at
            the exponent's beginning, or in one that makes the number small.
        digits: of the number's whole part.
        exponent: so far.
    """

    where: str
    digits: int = 0
    exponent: int = 0


_BETWEEN, _STRING, _ESCAPED = Place("between"), Place("string"), Place("escaped")


class JsonNumbers:
    """The automaton, and its masks over a vocabulary; shared by all replies, in any thread."""

    start = _BETWEEN

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # of what is kept
        self._numeric = [token for token, piece in enumerate(vocabulary.pieces) if _DIGITS & set(piece)]
        self._known: dict[Place, Mask | None] = {_STRING: None, _ESCAPED: None}
        self._masks: dict[frozenset[int], Mask | None] = {frozenset(): None}  # by what they refuse: a few

    def mask(self, place: Place) -> Mask | None:
        """The tokens that may come at `place`; None for any."""
        if place not in self._known:
            refused = frozenset(token for token in self._numeric if self.after(place, token) is None)
            with self._lock:
                if refused not in self._masks:
                    self._masks[refused] = ~self._vocabulary.mask(refused)
                self._known[place] = self._masks[refused]
        return self._known[place]

    def after(self, place: Place, token: int) -> Place | None:
        """The place after `token`; None where a number would become too large."""
        piece = self._vocabulary.pieces[token]
        if place == _STRING and _QUOTE not in piece and _ESCAPE not in piece:
            return place
        for byte in piece:
            moved = _step(place, byte)
            if moved is None:
                return None
            place = moved
        return place


def _step(place: Place, byte: int) -> Place | None:
    """The place after a byte of JSON."""
    where, digits, _ = place
    if where == "string":
        return _BETWEEN if byte == _QUOTE else _ESCAPED if byte == _ESCAPE else _STRING
    if where == "escaped":
        return _STRING
    if byte in _DIGITS:
        return _digit(place, byte - ord("0"))
    if byte in _MARKS and where in ("whole", "fraction"):
        return Place("mark", digits)
    if byte == _POINT and where == "whole":
        return Place("fraction", digits)
    if where == "mark":  # its sign
        return Place("small") if byte == _MINUS else Place("exponent", digits)
    return _STRING if byte == _QUOTE else _BETWEEN


def _digit(place: Place, value: int) -> Place | None:
    where, digits, exponent = place
    if where == "between":
        return Place("whole", int(value > 0))
    if where == "whole":
        return Place(where, digits + 1) if digits < _POWER else None
    if where in ("fraction", "small"):
        return place
    exponent = 10 * exponent + value
    return Place("exponent", digits, exponent) if digits + exponent <= _POWER else None
