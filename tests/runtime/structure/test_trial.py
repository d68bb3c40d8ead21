"""The process that tries grammars: it says what llguidance says, and may fail at any time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import llguidance
import pytest

from deltart.errors import GenerationError
from deltart.runtime.structure.trial import Trial

SLOW = llguidance.LLMatcher.grammar_from_json_schema({"type": "integer", "multipleOf": 9_999_991})


def _large() -> str:
    schema: object = {"type": "integer"}
    for _ in range(20):
        schema = {"anyOf": [schema, {"type": "object", "properties": {"a": schema}}]}
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema))


@pytest.fixture
def trial() -> Iterator[Trial]:
    made = Trial(seconds=0.5)
    yield made
    made.close()


def test_its_judgement_is_llguidances(trial: Trial) -> None:
    assert trial.refusal("start: /[a-z]+/") is None
    assert "unclosed group" in (trial.refusal("start: /(/") or "")
    assert trial.refusal('start: "new\\nline é" | /./') is None


def test_time_is_bounded_and_the_next_grammar_is_tried(trial: Trial) -> None:
    assert trial.refusal("start: /a/") is None
    began = time.monotonic()
    with pytest.raises(GenerationError, match=r"more than 0.5 s"):
        trial.refusal(SLOW)
    assert time.monotonic() - began < 3
    assert trial.refusal("start: /a/") is None


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    small = Trial(seconds=60, memory=600 << 20)
    try:
        with pytest.raises(GenerationError, match="more than 600 MiB"):
            small.refusal(_large())
        assert small.refusal("start: /a/") is None
    finally:
        small.close()


def test_a_grammar_that_crashes_the_library_is_refused_or_compiled(trial: Trial) -> None:
    """llguidance 1.9 overflows its stack on this one. What counts is that nothing else does."""
    crashing = llguidance.LLMatcher.grammar_from_json_schema({"const": -(2**63)})
    try:
        assert trial.refusal(crashing) is None
    except GenerationError as error:
        assert "crashes" in error.found
    assert trial.refusal("start: /a/") is None


def test_a_child_that_was_killed_is_replaced(trial: Trial) -> None:
    assert trial.refusal("start: /a/") is None
    assert trial._child is not None
    trial._child.kill()
    trial._child.wait()
    assert trial.refusal("start: /a/") is None
    trial.close()
    trial.close()
