"""Tool calls drawn under their masks, read by the reply's parser and checked by the jsonschema package."""

from __future__ import annotations

import random
from typing import Any

import jsonschema
import pytest

from deltart.errors import GenerationError
from deltart.runtime.structure.compiler import StructureCompiler
from deltart.runtime.structure.structure import Structure
from deltart.runtime.text.reply import Reply, parse_reply
from support.json_schemas import SchemaMaker
from support.walks import Walker

VALIDATOR = jsonschema.Draft202012Validator


def tool(name: str, properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A function as in OpenAI's requests; `strict` and the schema's other keywords in `more`."""
    strict = {"strict": more.pop("strict")} if "strict" in more else {}
    parameters = {"type": "object", "properties": properties, "required": required or [], **more}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **strict}}


def call(name: str, **values: str) -> str:
    """A call as the family's template writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def accepts(compiler: StructureCompiler, walker: Walker, structure: Structure, text: str) -> bool:
    """Whether a reply may be `text`, and end with it."""
    tokens = [*walker.tokenizer.encode(text), min(walker.tokenizer.eos_ids)]
    return compiler.compile(structure).matcher(thinking=False).permits(tokens) == len(tokens)


def drawn(
    compiler: StructureCompiler, walker: Walker, structure: Structure, rng: random.Random, tools: list[dict[str, Any]]
) -> Reply | None:
    """A random reply; None where it was cut."""
    tokens, ended = walker.reply(compiler.compile(structure).matcher(thinking=False), rng, most=600)
    text = walker.tokenizer.decode(tokens, skip_special=False)
    return parse_reply(text, tools, thinking=False) if ended else None


@pytest.mark.parametrize("seed", range(30))
def test_every_call_is_parsed_and_valid(compiler: StructureCompiler, walker: Walker, seed: int) -> None:
    maker, rng = SchemaMaker(seed, deepest=2), random.Random(seed)
    schemas = {f"tool_{index}": _parameters(maker, rng) for index in range(2)}
    tools = [{"name": name, "parameters": parameters, "strict": True} for name, parameters in schemas.items()]
    structure = Structure.tools(tools, "required", parallel=bool(seed % 2))
    complete = 0
    for _ in range(8):
        reply = drawn(compiler, walker, structure, rng, tools)
        if reply is None:
            continue
        complete += 1
        assert reply.content == "" and len(reply.tool_calls) >= 1
        assert seed % 2 or len(reply.tool_calls) == 1
        for one in reply.tool_calls:
            checker = VALIDATOR(schemas[one.name], format_checker=VALIDATOR.FORMAT_CHECKER)
            assert not [error.message for error in checker.iter_errors(one.arguments)]
    assert complete >= 2


def _parameters(maker: SchemaMaker, rng: random.Random) -> dict[str, Any]:
    properties, definitions = {}, {}
    for index in range(rng.randrange(0, 4)):
        made = maker.schema()
        definitions |= made.pop("$defs", {}) if not definitions else {}
        if "$ref" in str(made) and not definitions:
            continue
        properties[f"p{index}"] = made
    required = [name for name in properties if rng.random() < 0.6]
    return {
        "type": "object", "properties": properties, "required": required, "additionalProperties": False,
        "$defs": definitions or {"node": True, "other": True},
    }  # fmt: skip


VALUES: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string"}, ["", "\n", "\n\n  x", "Paris", "a\n\nb </parameter> c", "</x>"], ["a\n<parameter=b>"]),
    ({}, ["anything", "[1]"], []),
    ({"type": "integer"}, ["3", "-12"], ["3.5", "three", "", " 3", "3 "]),
    ({"type": "number"}, ["3", "1e3", "-0.5"], ["x", "1."]),
    ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
    ({"type": "null"}, ["null"], ["None", ""]),
    ({"enum": ["a", "b c", 3, None, [1]]}, ["a", "b c", "3", "null", "[1]"], ["b", "4", "b c "]),
    ({"const": "x"}, ["x"], ["y"]),
    ({"type": "array", "items": {"type": "integer"}}, ["[]", "[1, 2]", "[\n  1\n]"], ["1", "[1.5]", "[1", '["a"]']),
    ({"type": "object", "required": ["k"]}, ['{"k": "</parameter>"}'], ["{}", '{"k": "</parameter></tool_call>"}']),
    ({"anyOf": [{"type": "integer"}, {"enum": ["auto"]}]}, ["3", "auto"], ["aut", "x"]),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["null", "text"], []),
    ({"type": ["integer", "null"]}, ["3", "null"], ["x"]),
    ({"$ref": "#/$defs/unit"}, ["C", "F"], ["K"]),
    ({"type": "array", "items": {"$ref": "#/$defs/unit"}}, ['["C"]'], ['["K"]']),
    ({"minItems": 1}, ["[1]"], ["[]"]),
    ({"type": "string", "enum": ["1", 1, None]}, ["1"], ["null"]),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, ["3"], ["2", "x"]),
    ({"allOf": [{"properties": {"a": {"type": "null"}}}, {"required": ["a"]}]}, ['{"a": null}'], ["{}", "x"]),
    ({"allOf": [{"type": "string"}]}, ["x"], []),
]  # fmt: skip
LENIENT_VALUES: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "integer", "nullable": True}, ["3", "null"], ["x"]),
    ({"type": "integer", "enum": ["1", "2"]}, ["1"], ["3"]),
    ({"x-order": 3, "readonly": True, "default": 3, "type": "integer"}, ["3"], ["x"]),
]
STRICT_VALUES: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "string", "pattern": "^[a-z]+$"}, ["abc"], ["", "ABC", "a1"]),
    ({"type": "string", "pattern": "[0-9]/"}, ["a1/b", "1/"], ["a", ""]),
    ({"type": "string", "pattern": "^a|b"}, ["a", "ab"], []),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語"], ["a", "abcd"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-2-9", "today"]),
    ({"type": "string", "format": "uuid"}, ["3f2504e0-4f89-11d3-9a0c-0305e82c3301"], ["3f2504e0"]),
    ({"type": "string", "format": "ipv4"}, ["10.0.255.1"], ["10.0.256.1", "10.0.0"]),
    ({"type": "string", "format": "email"}, ["a.b@example.com"], ["a.b", "@x"]),
    ({"type": ["string", "integer"], "maxLength": 1}, ["x", "12"], ["xy"]),
]


@pytest.mark.parametrize(("schema", "good", "bad", "strict"), [
    *((*case, False) for case in VALUES + LENIENT_VALUES), *((*case, True) for case in VALUES),
    *((*case, True) for case in STRICT_VALUES if case[0].get("pattern") != "^a|b"),
])  # fmt: skip
def test_what_a_value_may_be(
    compiler: StructureCompiler, walker: Walker, schema: Any, good: list[str], bad: list[str], strict: bool
) -> None:
    shared = {"$defs": {"unit": {"enum": ["C", "F"]}}}
    tools = [tool("f", {"a": schema, "b": {"type": "string"}}, ["a"], strict=strict, **shared)]
    structure = Structure.tools(tools, "required")
    for text in good:
        written = call("f", a=text, b="after")
        assert accepts(compiler, walker, structure, written)
        (parsed,) = parse_reply(written, tools, thinking=False).tool_calls
        assert parsed.arguments["b"] == "after"
    for text in bad:
        assert not accepts(compiler, walker, structure, call("f", a=text, b="after"))


@pytest.mark.parametrize("schema", [case[0] for case in STRICT_VALUES])
def test_texts_are_free_unless_strict_is_asked_for(compiler: StructureCompiler, walker: Walker, schema: Any) -> None:
    structure = Structure.tools([tool("f", {"a": schema}, ["a"])], "required")
    assert accepts(compiler, walker, structure, call("f", a="whatever, 1 2 3"))
    assert all("'f'" in warning and "#/properties/a" in warning for warning in compiler.compile(structure).warnings)
    assert compiler.compile(structure).warnings


WEATHER = tool("weather", {"city": {"type": "string"}, "days": {"type": "integer"}}, ["city"])
CLOCK = tool("clock", {})
ONE, TWO = call("weather", city="Paris", days="3"), call("clock")


@pytest.mark.parametrize(
    ("structure", "good", "bad"),
    [
        (
            Structure.tools([WEATHER, CLOCK], "required"),
            [ONE, TWO, f"{ONE}\n{TWO}", call("weather", days="3", city="Rome")],
            ["", "Hello", f"{ONE}{TWO}", f"{ONE}\nDone.", call("other"), call("weather"), call("weather", days="3"),
             call("clock", city="x"), call("weather", city="x", town="y"), f"Sure: {ONE}"],
        ),
        (Structure.tools([WEATHER, CLOCK], "required", parallel=False), [ONE, TWO], [f"{ONE}\n{TWO}"]),
        (Structure.tools([WEATHER, CLOCK], {"name": "clock"}), [TWO, f"{TWO}\n{TWO}"], [ONE, f"{TWO}\n{ONE}"]),
        (
            Structure.tools([WEATHER, CLOCK], "auto"),
            ["Hello", ONE, f"Sure:\n\n{ONE}\n{TWO}", f"{ONE}\n\nDone.", ""],
            [call("other"), call("weather"), f"Sure: {call('clock', a='1')}", "x <tool_call> y"],
        ),
        (
            Structure.tools([WEATHER], "auto", parallel=False, answer=Structure.json_object()),
            ['{"a": 1}', ONE], ["Hello", f"{ONE}\n{ONE}", "", '{"a": 1}\n', f"Hello {ONE}"],
        ),
    ],
)  # fmt: skip
def test_which_replies_are_allowed(
    compiler: StructureCompiler, walker: Walker, structure: Structure, good: list[str], bad: list[str]
) -> None:
    for text in good:
        assert accepts(compiler, walker, structure, text), text
    for text in bad:
        assert not accepts(compiler, walker, structure, text), text


def test_a_parameter_comes_once(compiler: StructureCompiler, walker: Walker) -> None:
    twice = ONE.replace("<parameter=days>\n3", "<parameter=city>\nRome")
    assert not accepts(compiler, walker, Structure.tools([WEATHER], "required"), twice)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (tool("f", {"a": {"type": "string", "format": "json-pointer"}}, strict=True), "#/properties/a/format"),
        (tool("f", {"a": {"type": "string", "pattern": "a$b"}}, strict=True), "#/properties/a/pattern"),
        (tool("f", {"a": {"type": "array", "uniqueItems": True}}, strict=True), "'f', parameter 'a'.*uniqueItems"),
        (tool("f", {"a": {"oneOf": [{"type": "string"}, {"type": "null"}]}}, strict=True), "#/properties/a/oneOf"),
        (tool("f", {"a": {"type": "string", "not": {}}}, strict=True), "#/properties/a/not"),
        (tool("f", {"a": {"allOf": [{"type": "string"}, {"minLength": 1}]}}, strict=True), "#/properties/a/allOf"),
        (tool("f", {"a": {"$ref": "#/$defs/b", "minimum": 3}}, strict=True, **{"$defs": {"b": {}}}), "/a/minimum"),
        (tool("f", {}, strict=True, minProperties=1), "'f' has #/minProperties"),
        (tool("f", {}, strict=True, additionalProperties=True), "'f' has #/additionalProperties"),
        (tool("f", {"a": False}), "#/properties/a: false"),
        (tool("f", {"a": {"enum": []}}), "#/properties/a/enum"),
        (tool("f", {"a": {"type": "null", "enum": ["x"]}}, strict=True), "#/properties/a/enum"),
        (tool("f", {"a": {"$ref": "#/$defs/b"}}), r"#/properties/a/\$ref"),
        (tool("f", {"a>": {}}), "'a>'"),
        (tool(" f", {}), "' f'"),
        ({"name": "f", "parameters": {"type": "array"}}, "no object"),
        ({"name": "f", "parameters": {"properties": ["a"]}}, "no object"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(
    compiler: StructureCompiler, function: dict[str, Any], found: str
) -> None:
    with pytest.raises(GenerationError, match=found):
        compiler.compile(Structure.tools([function], "required"))


def test_formats_that_nobody_knows_pass(compiler: StructureCompiler, walker: Walker) -> None:
    function = tool("f", {"a": {"type": "string", "format": "colour", "maxLength": 4}}, ["a"], strict=True)
    structure = Structure.tools([function], "required")
    assert compiler.compile(structure).warnings == ("tool 'f': format 'colour' at #/properties/a is not enforced",)
    assert accepts(compiler, walker, structure, call("f", a="red"))
    assert not accepts(compiler, walker, structure, call("f", a="green"))


def test_lenient_falls_back_to_any_json_and_says_so(compiler: StructureCompiler, walker: Walker) -> None:
    odd = {"type": "object", "patternProperties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    structure = Structure.tools([tool("f", {"a": odd}, minProperties=1)], "required")
    warnings = compiler.compile(structure).warnings
    assert any("#/minProperties is not enforced" in warning for warning in warnings)
    assert any("parameter 'a' is JSON, but otherwise not enforced" in warning for warning in warnings)
    assert accepts(compiler, walker, structure, call("f", a='{"ab": 1}'))
    assert not accepts(compiler, walker, structure, call("f", a="words"))
