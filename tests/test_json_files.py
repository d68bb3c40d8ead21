"""Strict JSON: equal to Python's reader where the format is clear, an error of the asked class everywhere else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltart.errors import ArtifactError, ConfigError, DeltaRTError
from deltart.json_files import MAX_DEPTH, parse_json, read_json, shown
from deltart.typed import Count, typed

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
REFUSED = {
    "nothing": b"",
    "cut off": b'{"a": [1',
    "more after it": b"{} {}",
    "a comment": b"// c\n{}",
    "NaN": b'{"a": NaN}',
    "-Infinity": b"[-Infinity]",
    "overflow": b"[1e999]",
    "digits": b"[" + b"1" * 5000 + b"]",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "closed, but deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "a name twice": b'{"a": 1, "b": {"x": 1, "x": 1}}',
    "a name twice, spelled differently": b'{"a": 1, "\\u0061": 2}',
    "half a pair": b'["\\ud83d"]',
    "half a pair as a name": b'{"\\uDC00": 1}',
    "Latin-1": b'["\xfc"]',
    "UTF-16": "[1]".encode("utf-16"),
    "an encoded surrogate": b'["\xed\xa0\xbd"]',
    "zero bytes": bytes(8),
    "a raw control code": b'["\x01"]',
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=list(REFUSED))
def test_what_the_format_leaves_open_is_refused(raw: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"thing is not (valid JSON|UTF-8)"):
        parse_json(raw, "thing", ArtifactError)


@given(VALUES)
def test_plain_values_are_read_as_python_reads_them(value: Any) -> None:
    assert (
        parse_json(json.dumps(value), "x") == value == parse_json(json.dumps(value, ensure_ascii=False).encode(), "x")
    )


@given(st.binary(max_size=40) | st.text('[]{}",:0123456789eE+-.truefalsn\\ud8 \n', max_size=40).map(str.encode))
def test_bytes_give_a_value_that_can_be_written_or_an_error(raw: bytes) -> None:
    try:
        value = parse_json(raw, "x")
    except ConfigError:
        return
    assert value == json.loads(raw)
    assert json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def test_the_widest_numbers_that_files_hold_are_kept() -> None:
    assert parse_json(b"[1000000000000000019884624838656, -0, 1e308, 5e-324]", "x") == [
        10**30 + 19884624838656,
        0,
        1e308,
        5e-324,
    ]
    assert math.isfinite(float(parse_json("9" * 300, "x")))


@dataclass(frozen=True)
class Sized:
    name: str
    size: Count
    parts: list[int]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "a", "size": True, "parts": []}, "size: expected `int`, got `bool`"),
        ({"name": "a", "size": 1.0, "parts": []}, "size"),
        ({"name": "a", "size": -1, "parts": []}, ">= 0"),
        ({"name": "a", "size": 2**63, "parts": []}, "size"),
        ({"name": None, "size": 1, "parts": []}, "name"),
        ({"name": "a", "size": 1, "parts": [1, "2"]}, r"parts\[1\]"),
        ({"name": "a", "size": 1, "parts": {}}, "parts"),
        ({"name": "a", "size": 1}, "missing required field `parts`"),
        ({"name": "a", "size": 1, "parts": [], "odd\x1b[2J": 1}, r"unknown field 'odd\\x1b\[2J'"),
        ([], "expected `object`, got `array`"),
        (None, "got `null`"),
    ],
)
def test_typed_names_the_field(value: Any, words: str) -> None:
    with pytest.raises(DeltaRTError, match=words):
        typed(value, Sized, "thing")


def test_typed_gives_the_value() -> None:
    assert typed({"name": "a", "size": 2, "parts": [3]}, Sized, "thing") == Sized("a", 2, [3])


@given(st.text() | st.lists(st.text()) | st.integers(10**4000, 10**4400) | st.binary())
def test_shown_is_short_and_steers_no_terminal(value: Any) -> None:
    text = shown(value)
    assert text.isprintable() and len(text) <= 80 and text.encode()


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b"[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        read_json(path)
