"""The skills that nano is taught, as endless seeded conversations split into training and held-out by hash."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tools.nano import words

Message = dict[str, Any]
MAX_REVERSED, MAX_COPIED = 8, 10


@dataclass(frozen=True)
class Example:
    """One conversation and the reply it should get.

    Attributes:
        skill: reversal, copying, arithmetic, fact, tool_call, tool_response or two_turn.
        messages: the conversation up to and including the last message before the reply.
        thought: text of the reply's thinking block (unused when thinking is off).
        answer: text of the reply after the thinking block, as raw text.
        tools: JSON schemas shown to the model, if any.
        enable_thinking: what the chat template is told.
    """

    skill: str
    messages: list[Message]
    thought: str
    answer: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    enable_thinking: bool = True


def is_held_out(*key: object) -> bool:
    """One key in twenty, chosen by hash, never reaches training."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return digest[0] % 20 == 0


@dataclass(frozen=True)
class Sampler:
    """Draws examples from one side of the split.

    Args:
        rng: the only source of randomness.
        held_out: draw only from the held-out side (True) or only from the training side (False).
        ease: 0 for the full difficulty, towards 1 for shorter strings.
    """

    rng: random.Random
    held_out: bool = False
    ease: float = 0.0

    def keep(self, make: Callable[[], tuple[object, ...]]) -> tuple[Any, ...]:
        """Calls make() until its key falls on this sampler's side of the split."""
        while True:
            key = make()
            if is_held_out(*key) == self.held_out:
                return key

    def letters(self, skill: str, longest: int) -> str:
        """A random string or (pseudo-)word of at most `longest` lower-case letters."""
        return str(self.keep(lambda: (skill, self._draw_letters(longest)))[1])

    def _draw_letters(self, longest: int) -> str:
        top = max(3, round(longest * (1 - self.ease)))
        kind = self.rng.random()
        if kind < 0.1:
            fitting = [word for word in words.COMMON if len(word) <= top]
            return self.rng.choice(fitting)
        length = self.rng.choices(range(1, top + 1), weights=range(2, top + 2))[0]
        if kind < 0.3:
            pair = self.rng.choices
            syllables = (pair("bcdfghjklmnprstvwz")[0] + pair("aeiou")[0] for _ in range(length))
            return "".join(syllables)[:length]
        return "".join(self.rng.choices(string.ascii_lowercase, k=length))

    def thinks(self) -> bool:
        return self.rng.random() < 0.7


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def reversal_thought(text: str) -> str:
    """Numbers the letters, then reads the pairs from the last to the first."""
    pairs = [f"{index}{letter}" for index, letter in enumerate(text, start=1)]
    return "".join(pairs) + "\n" + "".join(reversed(pairs))


def reversal(sampler: Sampler) -> Example:
    text = sampler.letters("reversal", MAX_REVERSED)
    prompt = sampler.rng.choice(words.REVERSAL_PROMPTS).format(text)
    return Example("reversal", [user(prompt)], reversal_thought(text), text[::-1], enable_thinking=sampler.thinks())


def copying(sampler: Sampler) -> Example:
    text = sampler.letters("copying", MAX_COPIED)
    if sampler.rng.random() < 0.15:
        text = str(sampler.keep(lambda: ("copying", " ".join(sampler.rng.sample(words.COMMON, 2))))[1])
    prompt = sampler.rng.choice(words.COPYING_PROMPTS).format(text)
    return Example("copying", [user(prompt)], "Copy it.", text, enable_thinking=sampler.thinks())


def addition_thought(a: int, b: int) -> str:
    """Units first, then tens with the carry: 47+38 -> '7+8=15', '4+3+1=8'."""
    units = a % 10 + b % 10
    lines = [f"{a % 10}+{b % 10}={units}"]
    if a > 9 or b > 9:
        carry = "+1" if units > 9 else ""
        lines.append(f"{a // 10}+{b // 10}{carry}={a // 10 + b // 10 + units // 10}")
    return "\n".join(lines)


def subtraction_thought(a: int, b: int) -> str:
    """Units first, borrowing ten when needed: 47-38 -> '17-8=9', '4-3-1=0'."""
    borrow = a % 10 < b % 10
    units = a % 10 + 10 * borrow
    lines = [f"{units}-{b % 10}={units - b % 10}"]
    if a > 9:
        taken = "-1" if borrow else ""
        lines.append(f"{a // 10}-{b // 10}{taken}={a // 10 - b // 10 - borrow}")
    return "\n".join(lines)


def _draw_sum(rng: random.Random) -> tuple[str, str, int, int]:
    a, b = (rng.randrange(10 if rng.random() < 0.2 else 100) for _ in range(2))
    if rng.random() < 0.5:
        return "arithmetic", "-", max(a, b), min(a, b)
    return "arithmetic", "+", a, b


def arithmetic(sampler: Sampler) -> Example:
    _, sign, a, b = sampler.keep(lambda: _draw_sum(sampler.rng))
    prompts = words.ADDITION_PROMPTS if sign == "+" else words.SUBTRACTION_PROMPTS
    prompt = sampler.rng.choice(prompts).format(a, b)
    thought = addition_thought(a, b) if sign == "+" else subtraction_thought(a, b)
    answer = str(a + b if sign == "+" else a - b)
    thinks = sampler.rng.random() < 0.85
    return Example("arithmetic", [user(prompt)], thought, answer, enable_thinking=thinks)


def fact(sampler: Sampler) -> Example:
    def draw() -> tuple[str, str, str, str]:
        kind = sampler.rng.choice(list(words.FACTS))
        subject = sampler.rng.choice(list(words.FACTS[kind]))
        return "fact", kind, subject, sampler.rng.choice(words.FACT_PROMPTS[kind])

    _, kind, subject, prompt = sampler.keep(draw)
    answer = words.FACT_ANSWERS[kind].format(subject, words.FACTS[kind][subject])
    return Example("fact", [user(prompt.format(subject))], "I know this.", answer, enable_thinking=sampler.thinks())


@dataclass(frozen=True)
class Tool:
    """A made-up function of one argument. name = verb_noun; kind names the argument's JSON type."""

    verb: str
    noun: str
    key: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.verb}_{self.noun}"

    def schema(self) -> dict[str, Any]:
        properties = {self.key: {"type": self.kind}}
        parameters = {"type": "object", "properties": properties, "required": [self.key]}
        about = f"{self.verb.capitalize()} the {self.noun}"
        return {
            "type": "function",
            "function": {"name": self.name, "description": about, "parameters": parameters},
        }

    def call(self, value: str) -> str:
        """The call as the model must type it."""
        return (
            f"<tool_call>\n<function={self.name}>\n<parameter={self.key}>\n{value}\n</parameter>\n"
            "</function>\n</tool_call>"
        )


def draw_tool(sampler: Sampler) -> Tool:
    def draw() -> tuple[str, str, str, str, str]:
        rng = sampler.rng
        key, kind = rng.choice(list(words.TOOL_KEYS.items()))
        return "tool", rng.choice(words.TOOL_VERBS), rng.choice(words.TOOL_NOUNS), key, kind

    return Tool(*sampler.keep(draw)[1:])


def draw_value(sampler: Sampler, tool: Tool) -> tuple[str, str]:
    """(the value, how a person writes it in the question)."""
    if tool.kind == "integer":
        value = str(sampler.rng.randrange(100))
        return value, value
    if sampler.rng.random() < 0.5:
        value = sampler.rng.choice(words.CITIES)
        return value, value
    value = sampler.letters("tool_value", 6)
    return value, f'"{value}"'


def _tool_question(sampler: Sampler) -> tuple[Tool, str, Message, list[dict[str, Any]]]:
    tool = draw_tool(sampler)
    value, written = draw_value(sampler, tool)
    prompts = words.TOOL_PROMPTS_INTEGER if tool.kind == "integer" else words.TOOL_PROMPTS
    prompt = sampler.rng.choice(prompts).format(
        verb=tool.verb, Verb=tool.verb.capitalize(), noun=tool.noun, key=tool.key, value=written
    )
    tools = [tool.schema()]
    if sampler.rng.random() < 0.25:
        other = draw_tool(sampler)
        if other.noun != tool.noun:
            tools.insert(sampler.rng.randrange(2), other.schema())
    return tool, value, user(prompt), tools


def tool_call(sampler: Sampler) -> Example:
    tool, value, question, tools = _tool_question(sampler)
    thinks = sampler.thinks()
    return Example("tool_call", [question], f"Call {tool.name}.", tool.call(value), tools, thinks)


def tool_response(sampler: Sampler) -> Example:
    tool, value, question, tools = _tool_question(sampler)
    result = sampler.letters("tool_result", 6)
    if sampler.rng.random() < 0.5:
        result = str(sampler.rng.randrange(1000))
    argument: Any = int(value) if tool.kind == "integer" else value
    call = {"type": "function", "function": {"name": tool.name, "arguments": {tool.key: argument}}}
    thinks = sampler.thinks()
    asked: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    if thinks:
        asked["reasoning_content"] = f"Call {tool.name}."
    messages = [question, asked, {"role": "tool", "content": result}]
    answer = f"The {tool.noun} is {result}."
    return Example("tool_response", messages, "I have the result.", answer, tools, thinks)


def unused_tool(sampler: Sampler) -> Example:
    """A plain question in the presence of a tool that does not help."""
    plain = sampler.rng.choice([reversal, copying, arithmetic, fact])(sampler)
    tools = [draw_tool(sampler).schema()]
    return Example("unused_tool", plain.messages, plain.thought, plain.answer, tools, plain.enable_thinking)


def two_turn(sampler: Sampler) -> Example:
    """A second question after an answered one; every third asks about the first one's string."""
    if sampler.rng.random() < 0.34:
        return _follow_up(sampler)
    first, second = (sampler.rng.choice([reversal, copying, arithmetic, fact])(sampler) for _ in range(2))
    messages = [*first.messages, {"role": "assistant", "content": first.answer}, *second.messages]
    return Example("two_turn", messages, second.thought, second.answer, enable_thinking=second.enable_thinking)


def _follow_up(sampler: Sampler) -> Example:
    text = sampler.letters("reversal", 6)
    first = user(sampler.rng.choice(words.COPYING_PROMPTS).format(text))
    then = user(sampler.rng.choice(words.FOLLOW_UPS))
    messages = [first, {"role": "assistant", "content": text}, then]
    return Example("two_turn", messages, reversal_thought(text), text[::-1], enable_thinking=sampler.thinks())


Mixture = dict[Callable[[Sampler], Example], float]
BROAD: Mixture = {
    reversal: 0.27,
    copying: 0.1,
    arithmetic: 0.22,
    fact: 0.06,
    tool_call: 0.12,
    tool_response: 0.05,
    unused_tool: 0.04,
    two_turn: 0.14,
}
"""Shares of the skills at first: everything in view."""
HARD: Mixture = {
    reversal: 0.25,
    copying: 0.14,
    arithmetic: 0.35,
    fact: 0.03,
    tool_call: 0.06,
    tool_response: 0.04,
    unused_tool: 0.02,
    two_turn: 0.11,
}
"""Shares later on: what takes longest to learn, most of all the digit sums."""


def draw(sampler: Sampler, mixture: Mixture = BROAD) -> Example:
    """One example of a skill drawn by weight, sometimes under a system message."""
    skill = sampler.rng.choices(list(mixture), weights=list(mixture.values()))[0]
    example = skill(sampler)
    if sampler.rng.random() < 0.1:
        example.messages.insert(0, {"role": "system", "content": sampler.rng.choice(words.SYSTEMS)})
    return example
