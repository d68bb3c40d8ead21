"""Calibration text: rendering, cutting and splitting."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deltart.calib.dataset import DEFAULT, HELD_OUT, ROW_TOKENS, VALIDATED, VALIDATION_TOKENS, read_dataset, spread
from deltart.errors import CalibrationError
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.tokenizer import Tokenizer

NANO = Path(__file__).resolve().parents[2] / "tools" / "nano" / "checkpoint"


@pytest.fixture
def nano() -> Path:
    if not (NANO / "tokenizer.json").exists():
        pytest.skip(f"no checkpoint at {NANO}")
    return NANO


def test_rows_are_cut_and_split(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    rows = [list(range(n)) for n in (3, 2 * ROW_TOKENS + 5, 1, 7, 8, 9, 10, 11)]
    path.write_text("\n".join(json.dumps({"ids": row}) for row in rows))
    dataset = read_dataset(path, tmp_path, 100_000)
    cut = [rows[0], *(rows[1][b : b + ROW_TOKENS] for b in (0, 512, 1024)), *rows[3:]]  # one token alone says nothing
    assert dataset.held_out == cut[HELD_OUT - 1 :: HELD_OUT]
    others = [row for row in cut if row not in dataset.held_out]
    assert dataset.validation == others[::VALIDATED]
    assert sorted(dataset.calibration + dataset.validation) == sorted(others)
    assert dataset.tokens["validation"] == sum(map(len, dataset.validation))
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_messages_are_rendered_by_the_checkpoints_template(nano: Path, tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": 'Copy "abc"'}, {"role": "assistant", "content": "abc"}
    lines = [{"messages": [question]}, {"messages": [question, answer]}]
    lines.append({"messages": [question], "enable_thinking": False})  # type: ignore[dict-item]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in [*lines, {"text": "plain"}, {"text": "more"}]))
    dataset, tokenizer = read_dataset(path, nano, 2000), Tokenizer.from_folder(nano)
    template = ChatTemplate.from_folder(nano)
    expected = [
        template.render([question]),
        template.render([question, answer], add_generation_prompt=False),
        template.render([question], enable_thinking=False),
        "plain",
    ]
    assert [*dataset.validation, *dataset.calibration] == [tokenizer.encode(text) for text in expected]


def test_refused_messages_name_the_line(nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    for messages in ([], [{"role": "nobody", "content": "x"}], "hello", [{}]):
        path.write_text('{"text": "fine"}\n' + json.dumps({"messages": messages}))
        with pytest.raises(CalibrationError, match="line 2"):
            read_dataset(path, nano, 2000)


def test_the_default_set_is_usable(nano: Path) -> None:
    dataset = read_dataset(DEFAULT, nano, 2000)
    assert dataset.tokens["calibration"] > 5000 and len(dataset.held_out) >= 8
    assert 0.5 * VALIDATION_TOKENS < dataset.tokens["validation"] < 1.5 * VALIDATION_TOKENS


def test_parts_are_spread_over_sorted_text() -> None:
    rows = [[kind] * 10 for kind in range(8) for _ in range(50)]
    chosen = spread(rows, 400)
    assert {row[0] for row in chosen} == set(range(8)) and 350 <= sum(map(len, chosen)) <= 400
    assert spread(rows, 10**6) == rows
