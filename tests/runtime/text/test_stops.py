"""Stop strings against a search of the whole text, over random texts and cuts."""

from __future__ import annotations

import random

import pytest

from deltart.errors import GenerationError
from deltart.runtime.text.stops import StopMatcher, held_back


def _run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        text, hit = matcher.push(piece)
        out += text
        if hit:
            return out, True
    return out + matcher.finish(), False


def _pieces(draw: random.Random, text: str) -> list[str]:
    cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _first_complete(stops: list[str], text: str) -> str | None:
    """What precedes the stop string that is complete first, by definition: reading character by character."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return None


def test_one_stop_equals_find_for_any_cut() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("ab\n", k=draw.randint(0, 25)))
        stop = "".join(draw.choices("ab\n", k=draw.randint(1, 5)))
        pieces = _pieces(draw, text)
        at = text.find(stop)
        expected = (text, False) if at < 0 else (text[:at], True)
        assert _run([stop], pieces) == expected, (stop, pieces)


def test_of_several_stops_the_first_complete_counts_for_any_cut() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        text = "".join(draw.choices("abc", k=draw.randint(0, 25)))
        stops = ["".join(draw.choices("abc", k=draw.randint(1, 5))) for _ in range(draw.randint(0, 4))]
        pieces = _pieces(draw, text)
        expected = _first_complete(stops, text)
        wanted = (text, False) if expected is None else (expected, True)
        assert _run(stops, pieces) == wanted, (stops, pieces)


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopMatcher(["###", "END"])
    assert matcher.push("one #") == ("one ", False)
    assert matcher.push("# two") == ("## two", False)
    assert matcher.push(" EN") == (" ", False)
    assert matcher.push("D more") == ("", True)
    assert matcher.matched == "END"
    assert matcher.push("and more") == ("", True)
    assert matcher.finish() == ""


def test_what_is_held_comes_out_at_the_end() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("done\n\nUse") == ("done", False)
    assert matcher.finish() == "\n\nUse"
    assert matcher.matched is None


def test_held_back_is_the_longest_beginning() -> None:
    assert held_back("xaab", ["aabaab!"]) == 3
    assert held_back("aabaab", ["aabaac", "abx"]) == 3
    assert held_back("abc", ["abc"]) == 0
    assert held_back("abc", []) == 0


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(GenerationError, match="empty stop"):
        StopMatcher(["a", ""])
