"""The seeing nano's held-out set: questions from the side of the split that training never draws from."""

from __future__ import annotations

import random

from tools.nano.heldout import Question
from tools.nano.sight import tasks
from tools.nano.tasks import Sampler

EACH = 50  # questions of a skill
SEED = 64


def questions(each: int = EACH, seed: int = SEED) -> list[Question]:
    """`each` questions of every skill, in the order of the skills; the same seed gives the same ones."""
    found = []
    for skill in tasks.SKILLS:
        sampler = Sampler(random.Random(f"{seed}:{skill.__name__}"), held_out=True)
        for example in (skill(sampler) for _ in range(each)):
            found.append(Question(example.skill, example.messages, example.answer, example.enable_thinking))
    return found
