"""What a reply must look like: plain data, before it is compiled for a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltart.errors import GenerationError
from deltart.runtime.text.tool_arguments import tool_schema

Kind = Literal["json_schema", "json_object", "regex", "grammar", "tools"]
Choice = Literal["auto", "required"]


@dataclass(frozen=True)
class Structure:
    """A description of the reply after its thinking. Two equal ones compile to the same.

    Attributes:
        kind: which of the class methods made it.
        text: the JSON schema, regular expression, grammar, or JSON list of tools.
        strict: refuse a schema that can't be enforced to the letter; otherwise enforce what can be.
        required: tools: at least one call.
        parallel: tools: several calls may follow each other.
        answer: tools: what a reply without a call must look like; None for any text.
    """

    kind: Kind
    text: str = ""
    strict: bool = True
    required: bool = False
    parallel: bool = True
    answer: Structure | None = None

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, strict: bool = True) -> Structure:
        """JSON that is valid under `schema`, given as text or parsed; properties come in the schema's order.

        Without `strict`, keywords that can't be enforced are passed over and `oneOf` is read as `anyOf`.
        """
        return cls("json_schema", schema if isinstance(schema, str) else _json(schema), strict)

    @classmethod
    def json_object(cls) -> Structure:
        """Any JSON object."""
        return cls("json_object")

    @classmethod
    def regex(cls, pattern: str) -> Structure:
        """Text that `pattern` matches as a whole; the syntax is that of Rust's regex, without look-around."""
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, text: str) -> Structure:
        """Text of a context-free grammar: llguidance's Lark dialect, its JSON form, or GBNF."""
        return cls("grammar", text)

    @classmethod
    def tools(
        cls,
        tools: Sequence[Mapping[str, Any]],
        choice: Choice | Mapping[str, Any] = "auto",
        parallel: bool = True,
        answer: Structure | None = None,
    ) -> Structure:
        """Calls of `tools` in the model's own form, each with the function's parameters and their types.

        A function with `strict: true` is enforced to the letter; of the others' schemas, what can be.

        Args:
            tools: functions as in OpenAI's requests, or bare.
            choice: "auto" leaves text before and between calls free; "required" demands a call; the name of a
                function, {"type": "function", "function": {"name": ...}} or {"name": ...}, demands a call of it.
            parallel: more than one call may come.
            answer: what the reply must be where no call comes; with "auto" alone.

        Raises:
            GenerationError: a tool is malformed or given twice, none is given, or the named one is not among them.
        """
        named = {tool_schema(tool)[0]: tool for tool in tools}
        if len(named) < max(len(tools), 1):
            raise GenerationError(f"{len(tools)} tools with {len(named)} names", "at least one tool, each name once")
        if isinstance(choice, Mapping):
            name = choice.get("function", choice).get("name")
            if name not in named:
                raise GenerationError(f"tool_choice names {name!r}", f"one of the tools: {', '.join(named)}")
            named = {name: named[name]}
        elif choice not in ("auto", "required"):
            raise GenerationError(f"tool_choice = {choice!r}", "auto, required, or the name of a function")
        required = choice != "auto"
        if required and answer is not None:
            raise GenerationError("an answer's structure beside required calls", "one of them")
        return cls("tools", _json(list(named.values())), required=required, parallel=parallel, answer=answer)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(f"a schema that is not JSON: {error}", "a JSON value", "correct the schema") from error
