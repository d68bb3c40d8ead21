"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from deltart.errors import GenerationError


def held_back(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `marks` without completing it."""
    longest = max((len(mark) for mark in marks), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(len(mark) > length and mark.startswith(tail) for mark in marks):
            return length
    return 0


class StopMatcher:
    """Passes text through until the first stop string is complete; the text ends where that one starts.

    The result does not depend on how the text is cut into pieces. Of several stop strings the one that ends
    first counts, as if the text came character by character; of those that end together, the longest.

    Attributes:
        matched: the stop string that was met, or None.

    Raises:
        GenerationError: an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise GenerationError("an empty stop string", "strings of at least one character", "leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain to precede any stop string, and whether one has been met."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if ends:
            end, _, self.matched = min(ends)
            self._held = ""
            return text[: end - len(self.matched)], True
        keep = len(text) - held_back(text, self._stops)
        self._held = text[keep:]
        return text[:keep], False

    def finish(self) -> str:
        """The text still held back, once no more will come."""
        held, self._held = self._held, ""
        return held
