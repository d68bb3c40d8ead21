"""Scores a nano runtime on the held-out set: exact answers, clean stops, thinking on and off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from tools.nano.heldout import Question
from tools.nano.tokenizer import prompt_text

MAX_NEW_TOKENS = 128
BARS = {"reversal": 0.9, "copying": 0.95, "arithmetic": 0.8, "tool_call": 0.9}
STOP_BAR, MTP_BAR = 0.99, 0.7


class Reply(NamedTuple):
    """What a runtime generated greedily.

    Attributes:
        text: the decoded reply without its end-of-turn token.
        stopped: it ended with an end-of-sequence token within MAX_NEW_TOKENS.
    """

    text: str
    stopped: bool


Generate = Callable[[Sequence[str]], Sequence[Reply]]
"""Rendered prompts in, greedy replies out, in order."""


@dataclass
class Tally:
    asked: int = 0
    right: int = 0
    stopped: int = 0

    @property
    def share(self) -> float:
        return self.right / self.asked

    def add(self, right: bool, stopped: bool) -> None:
        self.asked += 1
        self.right += right
        self.stopped += stopped


def visible(reply: str, enable_thinking: bool) -> str | None:
    """The answer behind the thinking block; None when the reply breaks the thinking protocol."""
    if not enable_thinking:
        return None if "<think>" in reply or "</think>" in reply else reply
    thought, separator, answer = reply.partition("\n</think>\n\n")
    return answer if separator and "<think>" not in thought else None


def prompts(tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> list[str]:
    """Each question as the model sees it."""
    return [prompt_text(tokenizer, q.messages, q.tools, q.enable_thinking) for q in questions]


def score(questions: Sequence[Question], replies: Sequence[Reply]) -> dict[tuple[str, bool], Tally]:
    """Exact-match tallies by (skill, thinking on)."""
    tallies: dict[tuple[str, bool], Tally] = defaultdict(Tally)
    for question, reply in zip(questions, replies, strict=True):
        right = reply.stopped and visible(reply.text, question.enable_thinking) == question.expected
        tallies[(question.skill, question.enable_thinking)].add(right, reply.stopped)
    return dict(tallies)


def overall(tallies: dict[tuple[str, bool], Tally], skill: str | None = None) -> Tally:
    """The tallies of one skill, or of all, summed over thinking on and off."""
    total = Tally()
    for (name, _), tally in tallies.items():
        if skill in (None, name):
            total.asked += tally.asked
            total.right += tally.right
            total.stopped += tally.stopped
    return total


def table(tallies: dict[tuple[str, bool], Tally]) -> str:
    """A Markdown table of the scores, skills in order of appearance."""
    lines = [
        "| skill | questions | exact | thinking on | thinking off | stops | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for skill in dict.fromkeys(skill for skill, _ in tallies):
        lines.append(_row(skill, tallies, skill))
    lines.append(_row(None, tallies, "all"))
    return "\n".join(lines)


def _row(skill: str | None, tallies: dict[tuple[str, bool], Tally], label: str) -> str:
    total = overall(tallies, skill)
    cells = []
    for thinking in (True, False):
        part = overall({key: tally for key, tally in tallies.items() if key[1] == thinking}, skill)
        cells.append(f"{part.share:.1%} of {part.asked}" if part.asked else "-")
    bar = f">= {BARS[skill]:.0%}" if skill in BARS else "-" if skill else f"stops >= {STOP_BAR:.0%}"
    stops = total.stopped / total.asked
    return f"| {label} | {total.asked} | {total.share:.1%} | {cells[0]} | {cells[1]} | {stops:.1%} | {bar} |"
