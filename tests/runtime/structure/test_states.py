"""Constraints as state machines: rollback, drafts, ends, and what a closed set of words allows."""

from __future__ import annotations

import random
from functools import partial

import pytest

from deltart.errors import GenerationError
from deltart.runtime.sampling.constraint import Constraint
from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.states import Either, Ended, Free, Literal, StateConstraint
from deltart.runtime.structure.structure import Structure
from deltart.runtime.structure.vocabulary import Vocabulary
from support.walks import Walker, members

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F", 1, None]},
            },
            "required": ["city"],
        },
    },
}
STRUCTURES = {
    "schema": Structure.json_schema({"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}),
    "object": Structure.json_object(),
    "regex": Structure.regex("(ab|c)*[0-9]{2,}"),
    "grammar": Structure.grammar('start: "x" start "y" | "z"'),
    "required": Structure.tools([WEATHER], "required"),
    "one call": Structure.tools([WEATHER], "required", parallel=False),
    "auto": Structure.tools([WEATHER], "auto"),
    "auto or object": Structure.tools([WEATHER], "auto", answer=Structure.json_object()),
}


def _state(constraint: Constraint, walker: Walker) -> tuple[list[int], bool]:
    return walker.allowed(constraint), constraint.finished


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", STRUCTURES)
def test_going_back_is_never_having_gone(
    compiler: StructureCompiler, walker: Walker, name: str, thinking: bool
) -> None:
    """After any accepts and rollbacks a constraint is that of a fresh one that saw what is left, drafts included."""
    rng = random.Random(f"{name}{thinking}")
    compiled = compiler.compile(STRUCTURES[name])
    constraint, tokens = compiled.matcher(thinking), list[int]()
    for _ in range(120):
        allowed = walker.allowed(constraint)
        match rng.random():
            case chance if chance < 0.2 and tokens:
                back = rng.randrange(1, min(len(tokens), 6) + 1)
                constraint.rollback(back)
                del tokens[-back:]
            case chance if chance < 0.4:
                drafts = [rng.choice(allowed), *(rng.randrange(walker.limit) for _ in range(3))]
                expected = _permitted(compiled.matcher(thinking), tokens, drafts)
                assert constraint.permits(drafts) == expected >= 1
            case _:
                token = walker.tokenizer.id_of("</think>") if thinking and len(tokens) == 5 else rng.choice(allowed)
                assert token is not None
                constraint.accept(token)
                tokens.append(token)
        fresh = compiled.matcher(thinking)
        for token in tokens:
            fresh.accept(token)
        assert _state(constraint, walker) == _state(fresh, walker)


def _permitted(constraint: Constraint, tokens: list[int], drafts: list[int]) -> int:
    for token in tokens:
        constraint.accept(token)
    for count, token in enumerate(drafts):
        try:
            constraint.accept(token)
        except GenerationError:
            return count
    return len(drafts)


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "auto"])
def test_an_end_may_come_only_where_the_structure_is_complete(
    compiler: StructureCompiler, walker: Walker, name: str
) -> None:
    constraint = compiler.compile(STRUCTURES[name]).matcher(thinking=False)
    (end, *_) = sorted(walker.tokenizer.eos_ids)
    assert end not in walker.allowed(constraint)
    assert constraint.permits([end]) == 0
    with pytest.raises(GenerationError, match=f"token {end}"):
        constraint.accept(end)
    tokens, complete = walker.reply(constraint, random.Random(3), most=3000)
    assert complete and constraint.finished
    assert walker.allowed(constraint) == sorted(walker.tokenizer.eos_ids)
    constraint.rollback(len(tokens) + 1)
    assert not constraint.finished and end not in walker.allowed(constraint)


def test_thinking_is_free_but_may_not_be_all(compiler: StructureCompiler, walker: Walker) -> None:
    tokenizer = walker.tokenizer
    constraint = compiler.compile(Structure.regex("[0-9]")).matcher(thinking=True)
    everything = set(range(walker.limit)) - tokenizer.eos_ids
    for token in tokenizer.encode('Hm.\n<tool_call> {"a"<|im_start|>'):
        assert set(walker.allowed(constraint)) == everything
        constraint.accept(token)
    for token in tokenizer.encode("\n</think>\n\n"):
        constraint.accept(token)
    assert [tokenizer.decode([token]) for token in walker.allowed(constraint)] == list("0123456789")


def test_a_mask_that_stays_is_one_array(compiler: StructureCompiler, walker: Walker) -> None:
    """A device need not be sent it again."""
    constraint = compiler.compile(STRUCTURES["required"]).matcher(thinking=True)
    before = constraint.allowed()
    constraint.accept(walker.tokenizer.encode("a")[0])
    assert constraint.allowed() is before is not None
    opening = "</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
    for token in walker.tokenizer.encode(opening + "Paris"):
        constraint.accept(token)
    inside = constraint.allowed()
    for token in walker.tokenizer.encode(" and Rome"):
        constraint.accept(token)
    assert constraint.allowed() is inside is not None


def test_auto_leaves_text_alone_until_a_call_begins(compiler: StructureCompiler, walker: Walker) -> None:
    tokenizer = walker.tokenizer
    constraint = compiler.compile(STRUCTURES["auto"]).matcher(thinking=True)
    thought = tokenizer.encode("I <tool_call> think </think>\n\nSo: ")
    for token in thought:
        assert constraint.allowed() is None
        constraint.accept(token)
    assert constraint.permits([min(tokenizer.eos_ids)]) == 1
    constraint.accept(tokenizer.encode("<tool_call>")[0])
    assert constraint.permits(tokenizer.encode("\n<function=get_weather>\n")) > 1
    assert constraint.permits(tokenizer.encode("\n<function=rm>\n")) < len(tokenizer.encode("\n<function=rm>\n"))


def test_literals_follow_each_token_sequence(vocabulary: Vocabulary) -> None:
    end = partial(Ended, vocabulary)
    constraint = StateConstraint(Literal(vocabulary, [((1, 2), end), ((1, 3, 4), end), ((5,), end)], may_end=True))
    first = constraint.allowed()
    assert first is not None
    assert set(members(first, vocabulary.limit)) == {1, 5} | vocabulary.end_ids
    assert [constraint.permits(draft) for draft in ([1, 2], [1, 4], [1, 3, 4], [5, 5], [2])] == [2, 1, 3, 1, 0]
    constraint.accept(1)
    second = constraint.allowed()
    assert second is not None
    assert set(members(second, vocabulary.limit)) == {2, 3}
    constraint.accept(3)
    constraint.accept(4)
    assert constraint.finished


def test_either_is_a_trigger_or_the_other(vocabulary: Vocabulary) -> None:
    end = partial(Ended, vocabulary)
    state = Either(vocabulary, 7, end, Literal(vocabulary, [((1, 2), end)]))
    mask = state.allowed()
    assert mask is not None
    assert set(members(mask, vocabulary.limit)) == {1, 7}
    assert isinstance(state.after(7), Ended) and isinstance(state.after(1), Literal) and state.after(2) is None
    assert Either(vocabulary, 7, end, Free(vocabulary, 3, end, may_end=True)).allowed() is None


def test_no_further_back_than_the_beginning(vocabulary: Vocabulary) -> None:
    constraint = StateConstraint(Free(vocabulary, 3, partial(Ended, vocabulary), may_end=True))
    constraint.accept(1)
    constraint.rollback(0)
    with pytest.raises(GenerationError, match="rollback of 2"):
        constraint.rollback(2)
    constraint.rollback(1)
