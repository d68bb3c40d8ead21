"""JSON that is drawn at random under a schema's masks, against the jsonschema package."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.structure import Structure
from support.json_schemas import SchemaMaker
from support.walks import Walker

VALIDATOR = jsonschema.Draft202012Validator


def is_valid(schema: Any, value: Any) -> bool:
    """Under JSON Schema 2020-12, formats included."""
    return bool(VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).is_valid(value))


@pytest.mark.parametrize("seed", range(25))
def test_every_complete_reply_is_valid(compiler: StructureCompiler, walker: Walker, seed: int) -> None:
    maker, rng, complete = SchemaMaker(seed), random.Random(seed), 0
    for _ in range(4):
        schema = maker.schema()
        compiled = compiler.compile(Structure.json_schema(schema))
        for _ in range(3):
            tokens, ended = walker.reply(compiled.matcher(thinking=False), rng)
            complete += ended
            assert not ended or is_valid(schema, json.loads(walker.tokenizer.decode(tokens, skip_special=False)))
    assert complete >= 6


@pytest.mark.parametrize("seed", range(10))
def test_any_object_is_an_object(compiler: StructureCompiler, walker: Walker, seed: int) -> None:
    constraint = compiler.compile(Structure.json_object()).matcher(thinking=False)
    tokens, ended = walker.reply(constraint, random.Random(seed), most=1500)
    assert not ended or isinstance(json.loads(walker.tokenizer.decode(tokens)), dict)


INSTANCES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "integer", "minimum": 3}, [3, 12345], [2, -4, 3.5, "3", None]),
    ({"const": {"<|im_end|>": "<think>"}}, [{"<|im_end|>": "<think>"}], [{"<|im_end|>": "<think"}]),
    ({"type": "string", "maxLength": 2}, ["", "ab", "日本"], ["abc", "日本語", 1]),
    ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, [[], [None]], [[None, None], [1]]),
    ({"required": ["a"], "type": "object"}, [{"a": 1}, {"a": None, "b": []}], [{}, {"b": 1}]),
    ({"type": "array", "uniqueItems": False}, [[], [1, 1]], [{}]),
    (True, [None, {"a": [1, "x"]}], []),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), INSTANCES)
@pytest.mark.parametrize("indent", [None, 2])
def test_values_as_models_write_them(
    compiler: StructureCompiler, walker: Walker, schema: Any, good: list[Any], bad: list[Any], indent: int | None
) -> None:
    compiled = compiler.compile(Structure.json_schema(schema))
    (end, *_) = walker.tokenizer.eos_ids
    for value in (*good, *bad):
        text = json.dumps(value, ensure_ascii=False, indent=indent)
        tokens = [*walker.tokenizer.encode_plain(text), end]
        valid = bool(jsonschema.Draft202012Validator(schema).is_valid(value))
        assert valid == (value in good)
        assert (compiled.matcher(thinking=False).permits(tokens) == len(tokens)) == valid


def test_white_space_comes_to_an_end(compiler: StructureCompiler, walker: Walker) -> None:
    """A model that likes blanks gets on with it."""
    constraint = compiler.compile(Structure.json_schema({"type": "array", "items": {"type": "null"}})).matcher(False)
    constraint.accept(walker.tokenizer.encode_plain("[")[0])
    blanks = {token for token, piece in enumerate(walker.tokenizer.pieces()) if piece and not piece.strip()}
    taken = 0
    while True:
        allowed = [token for token in walker.allowed(constraint) if token in blanks]
        if not allowed:
            break
        constraint.accept(allowed[0])
        taken += 1
        assert taken <= 35
    assert taken
