"""What reaches a screen: text as text, nothing cut off, nothing that steers the terminal; JSON that stays JSON."""

from __future__ import annotations

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltart.cli import bounds, screen, streams
from deltart.cli.bounds import json_object, positive, real, whole

NAMES = ["m[/b]x", "[red]x", "a:smile:b", "x" * 300, "日本語", "\x1b[2Jx", "a\rb", "\u202eabc", "\ud83d"]


def shown(rows: list[tuple[str, ...]], encoding: str = "utf-8", monkeypatch: pytest.MonkeyPatch | None = None) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    assert monkeypatch is not None
    monkeypatch.setattr(sys, "stdout", stream)
    screen.console().print(screen.table(("name", "value"), rows, title=rows[0][0]))
    screen.console().print(screen.line(rows[0][0], "bold"))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_names_are_shown_whole_and_as_text(name: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown([(name, "1")], encoding, monkeypatch)
    expected = streams.plain(name).encode(encoding, "backslashreplace").decode(encoding)
    assert text.count(expected) == 3 and "…" not in text
    assert not set(text) & {"\x1b", "\r", "\u202e"}


@given(st.text())
def test_plain_text_steers_no_terminal(text: str) -> None:
    plain = streams.plain(text)
    assert not streams.STEERING.search(plain)
    assert streams.STEERING.search(text) or plain == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("value", [{"a": "日本 \U0001f600 é"}, {"\ud83d": "\udcff"}, ["\x1b"]], ids=ascii)
def test_json_is_json_in_every_encoding(value: object, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    streams.print_json(value)
    stream.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == value


@pytest.mark.parametrize("text", ["0", "9", "-1", "x", "", "1.5", "1e3", "1" * 5000, "nan", "³"])
def test_whole_numbers_are_bounded(text: str) -> None:
    with pytest.raises(bounds.argparse.ArgumentTypeError, match="from 1 to 8"):
        whole(1, 8)(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x", "", "1e999", "2.1"])
def test_real_numbers_are_bounded(text: str) -> None:
    with pytest.raises(bounds.argparse.ArgumentTypeError, match="from 0 to 2"):
        real(0, 2)(text)


def test_good_options_are_taken() -> None:
    assert [whole(1, 8)("8"), positive("2147483647"), real(0, 2)("0.5")] == [8, 2**31 - 1, 0.5]
    assert json_object('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("text", ["", "[", "[]", "3", '{"a": 1, "a": 2}', "[" * 100000, '{"a": NaN}'])
def test_json_options_are_objects(text: str) -> None:
    with pytest.raises(bounds.argparse.ArgumentTypeError):
        json_object(text)
