"""Structured replies of the built-in checkpoint: with thinking, drafts and streams, side by side and alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import deltart
from deltart.errors import GenerationError
from deltart.runtime.conversation import Chats, Prompt
from deltart.runtime.engine import Engine, EngineOptions
from deltart.runtime.handle import Handle
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Request
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.reply import parse_reply
from support.json_schemas import SchemaMaker

VALIDATOR = jsonschema.Draft202012Validator
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["city", "days"],
            },
        },
    }
]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
STRUCTURES = {
    "schema": Structure.json_schema(CITY),
    "regex": Structure.regex("(Paris|Rome), [0-9]{1,3}"),
    "required": Structure.tools(TOOLS, "required", parallel=False),
    "auto": Structure.tools(TOOLS, "auto", answer=Structure.json_schema(CITY)),
}


@pytest.fixture(scope="module")
def engine(nano_artifact: Path) -> Iterator[Engine]:
    options = EngineOptions(slots=8, draft_tokens=3, max_model_len=2048)
    with deltart.load(str(nano_artifact), threads=1, options=options) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain_engine(nano_artifact: Path) -> Iterator[Engine]:
    """One request at a time, without drafts and without a cache."""
    options = EngineOptions(slots=1, draft_tokens=0, max_model_len=2048, cache_bytes=0)
    with deltart.load(str(nano_artifact), threads=1, options=options) as opened:
        yield opened


def prompt(engine: Engine, thinking: bool, text: str = "What is the weather in Paris?") -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Chats(engine).prompt(messages, TOOLS, enable_thinking=thinking)


def submit(
    engine: Engine, structure: Structure, thinking: bool, params: SamplingParams, n: int = 1
) -> tuple[Handle, bool]:
    asked = prompt(engine, thinking)
    compiled = engine.compile(structure)
    return engine.submit(Request(asked.ids, params, n=n, structure=compiled, thinking=asked.thinking)), asked.thinking


def closing(engine: Engine) -> dict[int, float]:
    """A bias towards tokens that close what is open: the model knows no JSON, and would go on to the last token."""
    tokens = enumerate(engine.tokenizer.pieces())
    return {token: 9.0 if b"}" in piece or b"]" in piece else 7.0 for token, piece in tokens if _closes(piece)}


def _closes(piece: bytes) -> bool:
    return bool(piece) and set(piece) <= set(b'"}]')


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_the_request_alone(engine: Engine, plain_engine: Engine, temperature: float) -> None:
    """With drafts and company or without, thinking or not, greedy or sampled."""
    cases = [(name, thinking) for name in STRUCTURES for thinking in (False, True)]
    params = SamplingParams(temperature=temperature, seed=7, max_new_tokens=120)
    handles = [submit(engine, STRUCTURES[name], thinking, params)[0] for name, thinking in cases]
    drafted = 0
    for (name, thinking), handle in zip(cases, handles, strict=True):
        found = handle.result()[0]
        expected = submit(plain_engine, STRUCTURES[name], thinking, params)[0].result()[0]
        assert found.tokens == expected.tokens, (name, thinking)
        drafted += found.usage.accepted_tokens
    assert drafted > 50


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", ["schema", "regex", "required"])
def test_replies_are_what_was_asked_for(engine: Engine, name: str, thinking: bool) -> None:
    params = [SamplingParams(temperature=1.0, seed=seed, max_new_tokens=200) for seed in range(6)]
    asked = [submit(engine, STRUCTURES[name], thinking, each) for each in params]
    completions = [handle.result()[0] for handle, _ in asked]
    ended = [one for one in completions if one.finish_reason == "stop"]
    assert ended
    for one in ended:
        reply = parse_reply(one.text, TOOLS, asked[0][1])
        match name:
            case "schema":
                VALIDATOR(CITY).validate(json.loads(reply.content))
            case "regex":
                assert reply.content.startswith(("Paris, ", "Rome, ")) and not reply.tool_calls
            case _:
                (call,) = reply.tool_calls
                assert call.name == "get_weather" and 1 <= call.arguments["days"] <= 9
                assert reply.content == ""


def test_several_replies_share_a_structure(engine: Engine) -> None:
    handle, _ = submit(engine, STRUCTURES["schema"], False, SamplingParams(seed=1, max_new_tokens=200), n=4)
    completions = handle.result()
    assert len({tuple(one.tokens) for one in completions}) > 1
    for one in completions:
        assert one.finish_reason == "stop"
        VALIDATOR(CITY).validate(json.loads(one.text))


def test_a_grammar_that_meets_a_limit_ends_its_own_reply_alone(engine: Engine) -> None:
    endless = Structure.regex("((a{1,1000}){1,1000}){1,1000}b")
    (letter,) = engine.tokenizer.encode("a")
    params = SamplingParams(temperature=0, max_new_tokens=400, logit_bias={letter: 100})
    handles = [submit(engine, each, False, params)[0] for each in (STRUCTURES["schema"], endless, STRUCTURES["regex"])]
    with pytest.raises(GenerationError, match="grammar failed"):
        handles[1].result()
    for handle in (handles[0], handles[2]):
        assert handle.result()[0].finish_reason == "stop"


def _check_random_schemas(engine: Engine, seeds: Sequence[int], most: int) -> tuple[int, int]:
    """Replies under random schemas that ended, all of which are checked, and those that were cut."""
    bias = closing(engine)
    waiting: list[tuple[Any, Handle, bool]] = []
    for seed in seeds:
        schema = SchemaMaker(seed).schema()
        params = SamplingParams(temperature=0.7, seed=seed, max_new_tokens=most, logit_bias=bias, frequency_penalty=0.5)
        waiting.append((schema, *submit(engine, Structure.json_schema(schema), bool(seed % 2), params)))
    ended = cut = 0
    for schema, handle, thinking in waiting:
        text, reason = "", None
        for delta in handle:  # streamed
            text, reason = text + delta.text, delta.finish_reason or reason
        if reason == "length":
            cut += 1
            continue
        value = json.loads(parse_reply(text, (), thinking).content)
        errors = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).iter_errors(value)
        assert reason == "stop" and not [error.message for error in errors], (schema, text)
        ended += 1
    return ended, cut


def test_random_schemas(engine: Engine) -> None:
    ended, cut = _check_random_schemas(engine, range(24), most=200)
    assert ended >= 5 * cut


@pytest.mark.slow
def test_500_random_schemas(engine: Engine, record_testsuite_property: Any) -> None:
    """Every reply that its grammar ended is valid; those cut at the length limit are beginnings of valid ones."""
    ended, cut = _check_random_schemas(engine, range(1000, 1560), most=400)
    record_testsuite_property("structured_ended", ended)
    record_testsuite_property("structured_cut", cut)
    assert ended >= 500
