"""Requests to measure a server with, made from a seed: chats that share a system prompt, and long contexts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, str]
SYSTEM_WORDS, TURN_WORDS, TURNS, LONG_WORDS = 400, (10, 120), 3, 6000
# Plain words of one to three syllables: about a token each, and no text that a server could know.
_ONSETS, _VOWELS, _ENDS = (
    ["b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w"],
    ["a", "e", "i", "o", "u"],
    ["", "n", "r", "s", "t"],
)


@dataclass(frozen=True)
class Prompt:
    """The messages of one request."""

    messages: tuple[Message, ...]


def words(rng: random.Random, count: int) -> str:
    """So many made-up words."""
    return " ".join(
        "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 3))) + rng.choice(_ENDS)
        for _ in range(count)
    )


def chat(seed: int, count: int) -> list[Prompt]:
    """Conversations of one to three turns behind one system prompt: what a server can keep of it, it will find."""
    rng = random.Random(seed)
    system = {"role": "system", "content": words(rng, SYSTEM_WORDS)}
    return [Prompt((system, *_turns(rng))) for _ in range(count)]


def long_context(seed: int, count: int, length: int = LONG_WORDS) -> list[Prompt]:
    """Questions behind `length` words, of which no two requests share any."""
    rng = random.Random(seed)
    return [Prompt(({"role": "user", "content": f"{words(rng, length)}\n\nSum it up."},)) for _ in range(count)]


def _turns(rng: random.Random) -> Sequence[Message]:
    turns: list[Message] = []
    for turn in range(rng.randint(1, TURNS)):
        if turn:
            turns.append({"role": "assistant", "content": words(rng, rng.randint(*TURN_WORDS))})
        turns.append({"role": "user", "content": words(rng, rng.randint(*TURN_WORDS))})
    return turns


WORKLOADS: Mapping[str, Callable[[int, int], list[Prompt]]] = {"chat": chat, "long": long_context}
