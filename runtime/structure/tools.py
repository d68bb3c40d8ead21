"""Tool calls in the family's own form, as states: names and tags are literal, each value is what its schema says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from deltart.errors import GenerationError
from deltart.runtime.structure.call_text import CLOSE_PARAMETER, CallText, TextValue
from deltart.runtime.structure.grammar import Grammar
from deltart.runtime.structure.parameters import KEYWORDS, ParameterReader, Value
from deltart.runtime.structure.schema import parse_json
from deltart.runtime.structure.states import Either, Ended, Free, Literal, State, Then
from deltart.runtime.structure.structure import Structure
from deltart.runtime.structure.vocabulary import Vocabulary
from deltart.runtime.text.call_tags import LONGEST_NAME
from deltart.runtime.text.tool_arguments import tool_schema

OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
_CLOSE_FUNCTION = "</function>\n"
_ROOT = ("type", "properties", "required", "additionalProperties")

Begin = Callable[[Then], State]
CompileGrammar = Callable[[str, bool], Grammar]


# How a parameter may begin: the tokens of its opening tag, and the value behind them. A token that ends the tag may
# hold the first line breaks of the value too.
Ways = tuple[tuple[tuple[int, ...], Begin], ...]


@dataclass(frozen=True)
class Function:
    """One function on offer: the tokens of its opening tag, and its parameters by name."""

    opening: tuple[int, ...]
    parameters: Mapping[str, Ways]
    required: frozenset[str]


@dataclass
class ToolCalls:
    """All calls of one reply.

    Attributes:
        parallel: several calls may follow each other.
        required: at least one call comes, and nothing before it.
        skipped: what is not enforced, in words.
    """

    vocabulary: Vocabulary
    functions: tuple[Function, ...]
    parallel: bool
    required: bool
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open, self._close = self.vocabulary.tag(OPEN_CALL), self.vocabulary.tag(CLOSE_CALL)
        self._newline = self.vocabulary.encode("\n")
        self._closing = (*self.vocabulary.encode(_CLOSE_FUNCTION), self._close)

    def begin(self, answer: State | None) -> State:
        """The beginning of a reply; `answer` is what it may be instead of calls, where that is not free."""
        if self.required:
            return Literal(self.vocabulary, [((self._open,), self._function)])
        if answer is not None:
            return Either(self.vocabulary, self._open, self._function, answer)
        return Free(self.vocabulary, self._open, self._function, may_end=True)

    def _function(self) -> State:
        return Literal(self.vocabulary, [(one.opening, partial(self._body, one)) for one in self.functions])

    def _body(self, function: Function, given: frozenset[str] = frozenset()) -> State:
        choices: list[tuple[tuple[int, ...], Then]] = [
            (opening, partial(value, partial(self._body, function, given | {name})))
            for name, ways in function.parameters.items()
            if name not in given
            for opening, value in ways
        ]
        if function.required <= given:
            choices.append((self._closing, self._after_call))
        return Literal(self.vocabulary, choices)

    def _after_call(self) -> State:
        if not self.parallel:
            return Ended(self.vocabulary)
        if not self.required:
            return Free(self.vocabulary, self._open, self._function, may_end=True)
        return Literal(self.vocabulary, [((*self._newline, self._open), self._function)], may_end=True)


class ToolCompiler:
    """Compiles the functions of one request.

    Args:
        compile_grammar: see GrammarCompiler.compile.
    """

    def __init__(self, vocabulary: Vocabulary, text: CallText, compile_grammar: CompileGrammar) -> None:
        self._vocabulary, self._text, self._compile = vocabulary, text, compile_grammar
        self.skipped: list[str] = []

    def compile(self, structure: Structure) -> ToolCalls:
        """Raises GenerationError, naming the function and the keyword, where a schema can't be had."""
        functions = tuple(self._function(tool) for tool in parse_json(structure.text, "a list of tools"))
        return ToolCalls(self._vocabulary, functions, structure.parallel, structure.required, self.skipped)

    def _function(self, tool: Mapping[str, Any]) -> Function:
        name, root = tool_schema(tool)
        strict = tool.get("function", tool).get("strict") is True
        where = f"tool {name!r}"
        self._check_name(name, where)
        properties, required = self._signature(root, where, strict)
        reader = ParameterReader(where, root, strict)
        parameters = {}
        for key, schema in properties.items():
            self._check_name(key, where)
            value = reader.read(schema, f"#/properties/{key}")
            self.skipped += value.skipped
            opening = tuple(self._vocabulary.encode(f"<parameter={key}>\n"))
            parameters[key] = self._ways(opening, value, strict, f"{where}, parameter {key!r}")
        return Function(tuple(self._vocabulary.encode(f"\n<function={name}>\n")), parameters, required)

    def _signature(self, root: Mapping[str, Any], where: str, strict: bool) -> tuple[Mapping[str, Any], frozenset[str]]:
        """Schemas of the parameters, and which must be given."""
        properties, required = root.get("properties") or {}, root.get("required") or []
        if (
            root.get("type", "object") != "object"
            or not isinstance(properties, Mapping)
            or not isinstance(required, list)
        ):
            raise GenerationError(f"{where} has parameters that are no object", "a JSON schema of type object")
        unknown = sorted(key for key in root if key in KEYWORDS and key not in _ROOT)
        unknown += ["additionalProperties"] * bool(root.get("additionalProperties"))
        if unknown and strict:
            raise GenerationError(f"{where} has #/{unknown[0]}", f"only {', '.join(_ROOT)}", "do without strict")
        self.skipped += [f"{where}: #/{key} is not enforced" for key in unknown]
        extra = {key: True for key in required if key not in properties}
        return {**properties, **extra}, frozenset(required)

    def _ways(self, opening: tuple[int, ...], value: Value, strict: bool, where: str) -> Ways:
        text = self._text
        if value.text:
            ends = [(opening[-1], text.start), *text.openings(opening[-1])]
            return tuple(((*opening[:-1], token), partial(TextValue, text, place)) for token, place in ends)
        if value.listed:
            words = [tuple(self._vocabulary.encode(word + CLOSE_PARAMETER)) for word in value.words]
            return ((opening, lambda then: Literal(self._vocabulary, [(tokens, then) for tokens in words])),)
        try:
            grammar = self._compile(value.grammar(), value.is_json)
        except GenerationError as error:
            if strict:
                raise GenerationError(f"{where}: {error.found}", error.expected, error.hint) from error
            self.skipped.append(f"{where} is JSON, but otherwise not enforced ({error.found})")
            grammar = self._compile(Value(schemas=({},)).grammar(), True)
        self.skipped += [f"{where}: {warning}" for warning in grammar.warnings]
        return ((opening, partial(grammar.value, text)),)

    def _check_name(self, name: str, where: str) -> None:
        if not name or len(name) > LONGEST_NAME or set(name) & set("<>\n") or name != name.strip():
            raise GenerationError(
                f"{where} has the name {name!r}", f"1 to {LONGEST_NAME} characters without <, > and line breaks"
            )
