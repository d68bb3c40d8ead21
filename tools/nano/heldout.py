"""The held-out set: examples from the side of the split that training never draws from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.nano import tasks

PATH = Path(__file__).parent / "heldout.jsonl"
COUNTS: dict[Callable[[tasks.Sampler], tasks.Example], int] = {
    tasks.reversal: 200,
    tasks.copying: 120,
    tasks.arithmetic: 200,
    tasks.fact: 40,
    tasks.tool_call: 120,
    tasks.tool_response: 50,
    tasks.unused_tool: 30,
    tasks.two_turn: 80,
}


@dataclass(frozen=True)
class Question:
    """One line of heldout.jsonl. expected is the reply's text after the thinking block."""

    skill: str
    messages: list[dict[str, Any]]
    expected: str
    enable_thinking: bool
    tools: list[dict[str, Any]] = field(default_factory=list)


def write(path: Path = PATH, seed: int = 63) -> None:
    """Draws the set anew; the same seed gives the same file."""
    lines: dict[str, None] = {}
    for skill, count in COUNTS.items():
        sampler = tasks.Sampler(random.Random(f"{seed}:{skill.__name__}"), held_out=True)
        target = len(lines) + count
        while len(lines) < target:
            lines[_line(skill(sampler))] = None
    path.write_text("".join(f"{line}\n" for line in lines))


def _line(example: tasks.Example) -> str:
    question = {
        "skill": example.skill,
        "messages": example.messages,
        "expected": example.answer,
        "enable_thinking": example.enable_thinking,
    }
    return json.dumps(question | ({"tools": example.tools} if example.tools else {}))


def read(path: Path = PATH) -> list[Question]:
    return [Question(**json.loads(line)) for line in path.read_text().splitlines()]
