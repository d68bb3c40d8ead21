"""From the description of a structure to the constraint of a reply: compiled once, kept, shared by all replies."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltart.errors import GenerationError
from deltart.runtime.sampling.constraint import Constraint
from deltart.runtime.structure.call_text import CallText
from deltart.runtime.structure.grammar import Grammar, GrammarCompiler
from deltart.runtime.structure.schema import MAX_CHARACTERS, parse_schema, place_of, prepared
from deltart.runtime.structure.states import Free, Literal, State, StateConstraint
from deltart.runtime.structure.structure import Structure
from deltart.runtime.structure.tools import ToolCompiler
from deltart.runtime.structure.vocabulary import Vocabulary, load_llguidance
from deltart.runtime.text.tokenizer import Tokenizer

END_OF_THINKING = "</think>"
KEPT, KEPT_CHARACTERS = 256, 8 << 20  # descriptions whose compiled forms are kept, and what they may add up to
REFUSED_SECONDS = 60.0  # that a refusal is kept: it may have been the machine's fault


@dataclass(frozen=True)
class _Refusal:
    """A structure that was refused, and until when nobody need try again."""

    error: GenerationError
    until: float


class Compiled:
    """A `CompiledStructure`: a structure for one vocabulary; any number of replies at once.

    Attributes:
        warnings: what is not enforced, in words; empty under strict.
    """

    def __init__(
        self, vocabulary: Vocabulary, begin: Callable[[], State], loose: bool, warnings: tuple[str, ...],
        grammars: tuple[Grammar, ...],
    ) -> None:  # fmt: skip
        self._vocabulary, self._begin, self._loose, self._grammars = vocabulary, begin, loose, grammars
        self.warnings = warnings

    def matcher(self, thinking: bool) -> Constraint:
        """The constraint of one reply; with `thinking` it begins after </think> and the empty line that follows it.

        Raises:
            GenerationError: `thinking`, and the tokenizer has no </think>.
        """
        if not thinking:
            return StateConstraint(self._begin())
        then = self._begin if self._loose else self._after_thinking
        end = self._vocabulary.tag(END_OF_THINKING)
        return StateConstraint(Free(self._vocabulary, end, then, may_end=self._loose))

    @property
    def exhausted(self) -> bool:
        """A limit was met in a reply, so that it has to be compiled anew."""
        return any(grammar.exhausted for grammar in self._grammars)

    def _after_thinking(self) -> State:
        return Literal(self._vocabulary, [(self._vocabulary.encode("\n\n"), self._begin)])


class StructureCompiler:
    """Compiles structures and keeps what it compiled. Thread-safe; equal structures are compiled once.

    Args:
        tokenizer: the checkpoint's.
        vocab_limit: ids from here on are never allowed.
        seconds: what one grammar may take; a function's parameters are one each.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_limit: int, seconds: float = 4.0) -> None:
        self._tokenizer, self._limit, self._seconds = tokenizer, vocab_limit, seconds
        self._lock = threading.Lock()  # of what is kept
        self._turn = threading.Lock()  # of compiling: one at a time, while what is kept can be had
        self._kept: OrderedDict[Structure, Compiled | _Refusal] = OrderedDict()

    def compile(self, structure: Structure) -> Compiled:
        """The compiled form. It may take seconds: not for the thread that runs the model.

        Raises:
            GenerationError: it can't be enforced, or takes too much; the message names the keyword.
            MissingDependencyError: llguidance is not installed.
        """
        load_llguidance()
        found = self._known(structure)
        if found is None:
            with self._turn:
                found = self._known(structure) or self._keep(structure)
        if isinstance(found, _Refusal):
            raise GenerationError(found.error.found, found.error.expected, found.error.hint)
        return found

    def close(self) -> None:
        """Forget everything, and end the process of trials."""
        with self._lock:
            self._kept.clear()
        if "_grammars" in self.__dict__:
            self._grammars.close()

    def _known(self, structure: Structure) -> Compiled | _Refusal | None:
        with self._lock:
            found = self._kept.get(structure)
            lapsed = found.exhausted if isinstance(found, Compiled) else found and found.until < time.monotonic()
            if found is None or lapsed:
                return None
            self._kept.move_to_end(structure)
            return found

    def _keep(self, structure: Structure) -> Compiled | _Refusal:
        made: Compiled | _Refusal
        try:
            made = self._compile(structure)
        except GenerationError as error:  # kept too: a client that asks again must not cost the same again
            made = _Refusal(error, time.monotonic() + REFUSED_SECONDS)
        with self._lock:
            self._kept[structure] = made
            self._kept.move_to_end(structure)
            while len(self._kept) > 1 and self._too_much():
                self._kept.popitem(last=False)
        return made

    def _too_much(self) -> bool:
        return len(self._kept) > KEPT or sum(len(one.text) for one in self._kept) > KEPT_CHARACTERS

    def _compile(self, structure: Structure) -> Compiled:
        if len(structure.text) > MAX_CHARACTERS:
            raise GenerationError(
                f"a {structure.kind} of {len(structure.text)} characters",
                f"at most {MAX_CHARACTERS}",
                "make it smaller",
            )
        try:
            structure.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GenerationError(f"a {structure.kind} that is not Unicode: {error}", "no lone surrogates") from error
        if structure.kind == "tools":
            return self._tools(structure)
        grammar, warnings = self._grammar(structure)
        return Compiled(self._vocabulary, grammar.reply, False, warnings, (grammar,))

    def _tools(self, structure: Structure) -> Compiled:
        made: list[Grammar] = []

        def compile_grammar(text: str, is_json: bool) -> Grammar:
            made.append(self._grammars.compile(text, is_json))
            return made[-1]

        calls = ToolCompiler(self._vocabulary, self._call_text, compile_grammar).compile(structure)
        answer, warnings = self._grammar(structure.answer) if structure.answer else (None, ())
        if answer is not None:
            made.append(answer)
        loose = not structure.required and answer is None
        return Compiled(
            self._vocabulary,
            lambda: calls.begin(answer.reply() if answer else None),
            loose,
            (*calls.skipped, *warnings),
            tuple(made),
        )

    def _grammar(self, structure: Structure) -> tuple[Grammar, tuple[str, ...]]:
        """The whole of a reply, and what of it is not enforced."""
        match structure.kind:
            case "json_schema":
                return self._json(parse_schema(structure.text), structure.strict)
            case "json_object":
                return self._json({"type": "object"}, strict=True)
            case "regex":
                return self._named("the regular expression", _matcher().grammar_from_regex(structure.text))
            case "grammar":
                return self._named("the grammar", _any_grammar(structure.text))
            case _:
                raise GenerationError(f"{structure.kind} as the structure of an answer", "a schema, regex or grammar")

    def _json(self, schema: Any, strict: bool) -> tuple[Grammar, tuple[str, ...]]:
        made, skipped = prepared(schema, strict)
        try:
            grammar = self._grammars.compile(_matcher().grammar_from_json_schema(json.dumps(made)), is_json=True)
        except GenerationError as error:
            place = place_of(schema, error.found)
            at = f" at {place}" if place else ""
            hint = "change the schema" + (", or do without strict" if strict else "")
            raise GenerationError(f"the JSON schema{at}: {error.found}", "one that can be enforced", hint) from error
        return grammar, (*grammar.warnings, *skipped)

    def _named(self, what: str, grammar: str) -> tuple[Grammar, tuple[str, ...]]:
        try:
            compiled = self._grammars.compile(grammar)
        except GenerationError as error:
            raise GenerationError(f"{what}: {error.found}", error.expected, error.hint) from error
        return compiled, compiled.warnings

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer, self._limit)

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self._vocabulary, self._seconds)

    @cached_property
    def _call_text(self) -> CallText:
        text = CallText(self._vocabulary)
        text.warm()
        return text


def _matcher() -> Any:
    return load_llguidance().LLMatcher


def _any_grammar(text: str) -> str:
    """llguidance's own forms as they are, GBNF translated."""
    if text.lstrip().startswith("{") or "::=" not in text:
        return text
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        translated: str = any_to_lark(text)
    except Exception as error:  # the translator raises ValueError, IndexError and others
        raise GenerationError(f"the grammar can't be read as GBNF: {error}", "GBNF or Lark", "correct it") from error
    return translated
