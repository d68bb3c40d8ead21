"""Nano's tasks: true answers, thoughts that lead to them, and a held-out set that training can't draw."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tools.nano import heldout, tasks
from tools.nano.tasks import Example, Sampler


def draws(skill: str, held_out: bool, count: int = 300) -> list[Example]:
    sampler = Sampler(random.Random(f"{skill}{held_out}"), held_out=held_out)
    make = {make.__name__: make for make in tasks.BROAD}[skill]
    return [make(sampler) for _ in range(count)]


def quoted(text: str) -> str:
    match = re.search('"(.*)"', text)
    assert match, text
    return match[1]


@pytest.mark.parametrize("held_out", [False, True])
def test_reversal_is_the_quoted_text_backwards(held_out: bool) -> None:
    for example in draws("reversal", held_out):
        text = quoted(example.messages[0]["content"])
        assert 1 <= len(text) <= tasks.MAX_REVERSED
        assert example.answer == "".join(text[-1 - i] for i in range(len(text)))
        numbered, back = example.thought.splitlines()
        assert re.sub(r"\d", "", numbered) == text and re.sub(r"\d", "", back) == example.answer


def test_arithmetic_is_true_in_every_line() -> None:
    for example in draws("arithmetic", held_out=False):
        a, b = map(int, re.findall(r"\d+", example.messages[0]["content"]))
        plus = re.search(r"\+|plus|[Aa]dd", example.messages[0]["content"])
        assert int(example.answer) == (a + b if plus else a - b)
        for line in example.thought.splitlines():
            left, right = line.split("=")
            assert eval(left) == int(right), line


@pytest.mark.parametrize("skill", ["reversal", "copying"])
def test_the_two_sides_share_no_string(skill: str) -> None:
    train, held = ({e.answer for e in draws(skill, side, 3000)} for side in (False, True))
    assert not train & held


def test_training_never_draws_a_held_out_question() -> None:
    """Reads heldout.jsonl as committed and asks the split about each of its keys."""
    for question in heldout.read():
        if question.skill in ("reversal", "copying"):
            assert tasks.is_held_out(question.skill, quoted(question.messages[-1]["content"]))
        if question.skill == "arithmetic":
            prompt = question.messages[-1]["content"]
            a, b = map(int, re.findall(r"\d+", prompt))
            sign = "+" if int(question.expected) == a + b and re.search(r"\+|plus|[Aa]dd", prompt) else "-"
            assert tasks.is_held_out("arithmetic", sign, a, b)
        if question.skill in ("tool_call", "tool_response"):
            function = max((t["function"] for t in question.tools), key=lambda f: f["name"] in _called(question))
            (key, kind), *_ = [(k, p["type"]) for k, p in function["parameters"]["properties"].items()]
            assert tasks.is_held_out("tool", *function["name"].split("_"), key, kind)


def _called(question: heldout.Question) -> str:
    calls = [str(message.get("tool_calls", "")) for message in question.messages]
    return question.expected + "".join(calls)


def test_the_held_out_file_is_what_its_seed_makes(tmp_path: Path) -> None:
    heldout.write(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == heldout.PATH.read_bytes()
