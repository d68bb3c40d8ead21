"""Compiling: what is kept, what is refused by name, how long it may take, and from how many threads."""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deltart.errors import GenerationError, MissingDependencyError
from deltart.runtime.structure import compiler as module
from deltart.runtime.structure.compiler import Compiled, StructureCompiler
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.tokenizer import Tokenizer
from support.walks import Walker

REFUSED: list[tuple[Structure, str]] = [
    (Structure.json_schema({"properties": {"a": {"uniqueItems": True}}}), "#/properties/a/uniqueItems"),
    (Structure.json_schema({"not": {"type": "null"}}), "#/not"),
    (Structure.json_schema({"if": {}, "then": {}}), "#/(if|then)"),
    (Structure.json_schema({"items": {"oneOf": [{"minLength": 2}, {"maxLength": 5}]}}), "#/items/oneOf"),
    (Structure.json_schema({"properties": {"t": {"type": "text"}}}), "#/properties/t/type"),
    (Structure.json_schema({"properties": {"t": {"pattern": "(?=a)"}}}), "#/properties/t/pattern"),
    (Structure.json_schema({"items": {"format": "uri-reference"}, "format": "date"}), "#/items/format"),
    (Structure.json_schema({"items": {"enum": [1, 2**63]}}), "#/items/enum"),
    (Structure.json_schema({"$ref": "https://example.com/schema"}), r"#/\$ref"),
    (Structure.json_schema({"$ref": "#/$defs/none"}), r"#/\$ref"),
    (Structure.json_schema({"type": "object", "minProperties": 3}), "minProperties = 3 at #"),
    (Structure.json_schema(False), "false"),
    (Structure.json_schema("[1]"), "list"),
    (Structure.json_schema('{"type": '), "not JSON"),
    (Structure.json_schema('{"items": ' * 50_000 + "{}" + "}" * 50_000), "recursion"),
    (Structure.json_schema('{"items": ' * 500 + "{}" + "}" * 500), "nested 501 deep"),
    (Structure.json_schema('{"const": NaN}'), "NaN"),
    (Structure.json_schema('{"const": "\\ud800"}'), "surrogates"),
    (Structure.regex("a\ud800"), "surrogates"),
    (Structure("tools", '[{"name": "f", "x": ' + "[" * 200 + "]" * 200 + "}]"), "a list of tools nested"),
    (Structure.json_schema({"properties": {f"p{i}": {"type": "integer"} for i in range(1500)}}), "#/properties"),
    (Structure.json_schema({"enum": [f"word {i}" for i in range(90_000)]}), "characters|#/enum"),
    (Structure.regex("(a"), "regular expression.*unclosed"),
    (Structure.regex("(?=a)b"), "regular expression.*look-around"),
    (Structure.regex("a" * (1 << 21)), "characters"),
    (Structure.grammar("start: other"), "the grammar.*other"),
    (Structure.grammar("root ::= ("), "the grammar"),
    (Structure.tools([{"name": "f"}], answer=Structure.tools([{"name": "g"}])), "tools as the structure of an answer"),
]  # fmt: skip


@pytest.mark.parametrize(("structure", "found"), REFUSED, ids=[found for _, found in REFUSED])
def test_what_cannot_be_enforced_is_refused_by_name(
    compiler: StructureCompiler, structure: Structure, found: str
) -> None:
    with pytest.raises(GenerationError, match=found) as caught:
        compiler.compile(structure)
    assert caught.value.expected and len(str(caught.value)) < 1000


def test_a_grammar_that_can_not_go_back_is_walked_anew(compiler: StructureCompiler, tokenizer: Tokenizer) -> None:
    """llguidance rolls no rule with `max_tokens` back; clients send such grammars, and drafts are asked about."""
    grammar = compiler.compile(Structure.grammar('start: text "!"\ntext[max_tokens=4]: /[a-z ]*/'))
    words = tokenizer.encode_plain("a bc d")[:3]
    asked, plain = grammar.matcher(False), grammar.matcher(False)
    for place, token in enumerate(words):
        assert asked.permits([*words[place:], token, token]) >= len(words) - place
        expected, found = plain.allowed(), asked.allowed()
        assert expected is not None and found is not None and (found == expected).all()
        asked.accept(token)
        plain.accept(token)
    asked.rollback(2)
    assert asked.permits(words[1:]) == 2


def test_a_refusal_is_kept_too(tokenizer: Tokenizer) -> None:
    """A client that repeats a schema which takes too long does not hold up the others again."""
    impatient = StructureCompiler(tokenizer, tokenizer.vocab_limit, seconds=0.5)
    slow = Structure.json_schema({"properties": {"a": {"type": "integer", "multipleOf": 9_999_991}}})
    try:
        impatient.compile(Structure.regex("a"))
        began = time.monotonic()
        with pytest.raises(GenerationError, match=r"#/properties/a/multipleOf.*more than 0.5 s"):
            impatient.compile(slow)
        assert time.monotonic() - began < 5
        began = time.monotonic()
        with pytest.raises(GenerationError, match="multipleOf"):
            impatient.compile(slow)
        assert time.monotonic() - began < 0.4  # it did not run into the limit again
        assert impatient.compile(Structure.regex("b")).matcher(False).permits(tokenizer.encode_plain("b")) == 1
    finally:
        impatient.close()


def test_a_refusal_is_not_kept_for_ever(compiler: StructureCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """What took too long on a busy machine may be had on a quiet one."""
    monkeypatch.setattr(module, "REFUSED_SECONDS", -1.0)
    refused = Structure.json_schema({"not": {}})
    for _ in range(2):
        with pytest.raises(GenerationError, match="#/not"):
            compiler.compile(refused)
    assert compiler._known(refused) is None


def test_equal_structures_are_compiled_once(compiler: StructureCompiler) -> None:
    first = compiler.compile(Structure.json_schema({"type": "integer"}))
    assert compiler.compile(Structure.json_schema('{"type": "integer"}')) is first


def test_the_oldest_are_forgotten(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_CHARACTERS", 25)
    small = StructureCompiler(tokenizer, tokenizer.vocab_limit)
    try:
        kept = [Structure.regex(letter * 10) for letter in "abc"]
        made = [small.compile(one) for one in kept]
        assert small.compile(kept[2]) is made[2]
        assert small.compile(kept[1]) is made[1]
        assert small.compile(kept[0]) is not made[0]
    finally:
        small.close()


def test_threads_share_what_is_compiled(tokenizer: Tokenizer, walker: Walker) -> None:
    """Compiling, and matching with one compiled structure, from many threads at once."""
    shared = StructureCompiler(tokenizer, tokenizer.vocab_limit)
    barrier = threading.Barrier(8)
    text = json.dumps({"a": [1, 2, {"b": "x" * 50}]})
    tokens = tokenizer.encode_plain(text)

    def work(index: int) -> Compiled:
        barrier.wait()
        compiled = shared.compile(Structure.json_object())
        other = shared.compile(Structure.regex(f"{index}+"))
        for _ in range(5):
            constraint = compiled.matcher(thinking=False)
            for token in tokens:
                assert token in walker.allowed(constraint)
                constraint.accept(token)
            assert constraint.finished
        assert other.matcher(False).permits(tokenizer.encode_plain(str(index))) == 1
        return compiled

    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(work, range(8)))) == 1
    finally:
        shared.close()


def test_what_is_known_does_not_wait_for_what_is_not(tokenizer: Tokenizer) -> None:
    slow = Structure.json_schema({"type": "integer", "multipleOf": 9_999_973})
    shared = StructureCompiler(tokenizer, tokenizer.vocab_limit, seconds=2)
    try:
        known = shared.compile(Structure.regex("a"))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(shared.compile, slow)
            time.sleep(0.3)
            began = time.monotonic()
            assert shared.compile(Structure.regex("a")) is known
            assert time.monotonic() - began < 1.5 and not waiting.done()
            assert isinstance(waiting.exception(), GenerationError)
    finally:
        shared.close()


def test_a_closed_compiler_starts_again(tokenizer: Tokenizer) -> None:
    again = StructureCompiler(tokenizer, tokenizer.vocab_limit)
    for _ in range(2):
        assert again.compile(Structure.regex("a")).matcher(False).permits(tokenizer.encode_plain("a")) == 1
        again.close()


def test_lenient_says_what_it_does_not_enforce(compiler: StructureCompiler) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "colour"}}
    loose = compiler.compile(Structure.json_schema(schema, strict=False))
    assert any("uniqueItems" in warning for warning in loose.warnings)
    assert any("colour" in warning and "#/items" in warning for warning in loose.warnings)
    assert compiler.compile(Structure.json_schema({"type": "array"})).warnings == ()


def test_large_whole_numbers(compiler: StructureCompiler, walker: Walker) -> None:
    for number in (-(2**62), 2**63 - 1):
        compiled = compiler.compile(Structure.json_schema({"enum": [number, None]}))
        tokens = [*walker.tokenizer.encode_plain(str(number)), min(walker.tokenizer.eos_ids)]
        assert compiled.matcher(False).permits(tokens) == len(tokens)


def test_a_reply_that_meets_a_limit_fails_and_the_next_one_does_not(
    compiler: StructureCompiler, walker: Walker
) -> None:
    """llguidance would take it for complete."""
    structure = Structure.regex("((a{1,1000}){1,1000}){1,1000}b")
    compiled = compiler.compile(structure)
    constraint = compiled.matcher(thinking=False)
    (token,) = walker.tokenizer.encode_plain("a")
    with pytest.raises(GenerationError, match="failed"):
        for _ in range(200):
            constraint.accept(token)
            constraint.allowed()
    assert constraint.permits([token]) == 0
    again = compiler.compile(structure)
    assert again is not compiled
    assert token in walker.allowed(again.matcher(thinking=False))


def test_without_llguidance_there_is_a_hint(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependencyError, match=r"deltart\[structured\]"):
        StructureCompiler(tokenizer, tokenizer.vocab_limit).compile(Structure.json_object())


def test_gbnf_is_a_grammar(compiler: StructureCompiler, walker: Walker) -> None:
    compiled = compiler.compile(Structure.grammar('root ::= "yes" | "no" [0-9]+'))
    (end, *_) = walker.tokenizer.eos_ids
    for text, good in (("yes", True), ("no17", True), ("no", False), ("maybe", False)):
        tokens = [*walker.tokenizer.encode_plain(text), end]
        assert (compiled.matcher(False).permits(tokens) == len(tokens)) == good
