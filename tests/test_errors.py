"""The layout of an error, as the command line prints it."""

from __future__ import annotations

from deltart.errors import DeltaRTError


def test_an_error_shows_what_was_found_and_expected_and_a_hint_apart() -> None:
    error = DeltaRTError("x.json holds a list", "a JSON object", "download the file again")
    assert str(error) == "x.json holds a list\n  expected: a JSON object\n\nhint: download the file again"


def test_parts_that_are_not_given_leave_no_line() -> None:
    assert str(DeltaRTError("no tokens")) == "no tokens"
    assert str(DeltaRTError("no tokens", hint="add a prompt")) == "no tokens\n\nhint: add a prompt"
