"""The reply parser: cases written out, round trips through the vendor's template, every cut of a stream."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from deltart.errors import GenerationError
from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.reply import (
    ContentDelta,
    Event,
    ReasoningDelta,
    Reply,
    ReplyParser,
    ToolCall,
    opens_thinking,
    parse_reply,
)

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "write",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "lines": {"type": "integer"},
                    "options": {"type": "object"},
                },
            },
        },
    },
    {"name": "ping", "parameters": None},
]

PING = "<tool_call>\n<function=ping>\n</function>\n</tool_call>"
WRITE = (
    "<tool_call>\n<function=write>\n<parameter=path>\n\n  a.txt\n\n\n</parameter>\n"
    '<parameter=lines>\n12\n</parameter>\n<parameter=options>\n{"x": [1, null]}\n</parameter>\n'
    "</function>\n</tool_call>"
)
WRITTEN = ToolCall("write", {"path": "\n  a.txt\n\n", "lines": 12, "options": {"x": [1, None]}})
UNCLOSED_VALUE = "<tool_call>\n<function=write>\n<parameter=lines>\n1\n</function>\n</tool_call>"
NESTED = (
    "<tool_call>\n<function=write>\n<parameter=path>\n"
    "tags: <tool_call> </tool_call> </parameter> </function> <parameter=x>\n"
    "</parameter>\n</function>\n</tool_call>"
)
NESTED_PATH = "tags: <tool_call> </tool_call> </parameter> </function> <parameter=x>"

CASES: dict[str, tuple[str, Reply]] = {
    "empty": ("", Reply("", "", ())),
    "reasoning and content": (
        "\nwhy\n\nso\n</think>\n\nHi.\n\nBye\n",
        Reply("why\n\nso", "Hi.\n\nBye\n", ()),
    ),
    "reasoning cut short": ("why </thin", Reply("why </thin", "", ())),
    "no reasoning": ("\n</think>\n\nHi", Reply("", "Hi", ())),
    "thinking opened again": ("\n<think>\nwhy</think>x", Reply("why", "x", ())),
    "nothing but the tag": ("<think>", Reply("", "", ())),
    "second end tag": ("a</think>b</think>c", Reply("a", "b</think>c", ())),
    "call": (f"a\n</think>\n\n{PING}", Reply("a", "", (ToolCall("ping", {}),))),
    "content and calls": (
        f"a\n</think>\n\nOn it.\n\n{PING}\n{WRITE}\n",
        Reply("a", "On it.", (ToolCall("ping", {}), WRITTEN)),
    ),
    "content after a call": (f"</think>x\n{PING}\ny\n", Reply("", "x\n\ny\n", (ToolCall("ping", {}),))),
    "call on one line": (
        "</think><tool_call><function=write><parameter=lines>7</parameter></function></tool_call>",
        Reply("", "", (ToolCall("write", {"lines": 7}),)),
    ),
    "empty value": (
        "</think><tool_call>\n<function=write>\n<parameter=path>\n\n</parameter>\n</function>\n</tool_call>",
        Reply("", "", (ToolCall("write", {"path": ""}),)),
    ),
    "unknown function": (
        "</think><tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>",
        Reply("", "", (ToolCall("f", {"n": "1"}),)),
    ),
    "tags inside a value": (f"</think>{NESTED}", Reply("", "", (ToolCall("write", {"path": NESTED_PATH}),))),
    "call inside reasoning": (f"a {PING} b</think>c", Reply(f"a {PING} b", "c", ())),
    "call whose last tag is cut": (f"</think>x\n{WRITE[:-3]}", Reply("", "x", (WRITTEN,))),
    "call cut in its last but one tag": (f"</think>x\n{WRITE[:-17]}", Reply("", f"x\n{WRITE[:-17]}", ())),
    "call cut inside a value": ("</think>" + WRITE[:60], Reply("", WRITE[:60], ())),
    "call without a function": (
        f"</think><tool_call>\n{{}}\n</tool_call>\n{PING}",
        Reply("", "<tool_call>\n{}\n</tool_call>", (ToolCall("ping", {}),)),
    ),
    "value that is not closed": (
        f"</think>{UNCLOSED_VALUE}\n{WRITE}",
        Reply("", "", (ToolCall("write", {"lines": 1}), WRITTEN)),
    ),
    "text between the parameters": (
        "</think><tool_call>\n<function=write>\nhm\n</function>\n</tool_call>",
        Reply("", "<tool_call>\n<function=write>\nhm\n</function>\n</tool_call>", ()),
    ),
    "call opened twice": (f"</think><tool_call>\n{PING}", Reply("", "<tool_call>", (ToolCall("ping", {}),))),
    "talk of the tag": ("</think>Use <tool_call> tags.", Reply("", "Use <tool_call> tags.", ())),
}


def _merged(events: list[Event]) -> list[Event]:
    """Events with neighbouring pieces of one kind joined, which is all that a cut may change."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            merged[-1] = ReasoningDelta(last.text + event.text)
        elif isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            merged[-1] = ContentDelta(last.text + event.text)
        else:
            merged.append(event)
    return merged


def _stream(pieces: list[str], thinking: bool = True) -> list[Event]:
    parser = ReplyParser(TOOLS, thinking)
    events = [event for piece in pieces for event in parser.push(piece)]
    return _merged(events + parser.finish())


@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_reply(name: str) -> None:
    text, reply = CASES[name]
    assert parse_reply(text, TOOLS) == reply


@pytest.mark.parametrize("name", CASES)
def test_a_stream_cut_anywhere_gives_the_same_events(name: str) -> None:
    text, reply = CASES[name]
    whole = _stream([text])
    assert tuple(event for event in whole if isinstance(event, ToolCall)) == reply.tool_calls
    for cut in range(len(text) + 1):
        assert _stream([text[:cut], text[cut:]]) == whole, cut
    assert _stream(list(text)) == whole
    draw = random.Random(0)
    for _ in range(50):
        cuts = sorted(draw.choices(range(len(text) + 1), k=4))
        assert _stream([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole, cuts


def test_random_tags_cut_anywhere_give_the_same_events() -> None:
    parts = [*"ab\n", "\n\n", "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=write>"]
    parts += ["</function>", "<parameter=lines>", "</parameter>", PING, WRITE, "</function>\n</tool_call>"]
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices(parts, k=draw.randint(1, 12)))
        thinking = draw.random() < 0.3
        whole = _stream([text], thinking)
        assert _stream(list(text), thinking) == whole, text
        for _ in range(5):
            cut = draw.randrange(len(text) + 1)
            assert _stream([text[:cut], text[cut:]], thinking) == whole, (text, cut)


def test_without_thinking_all_is_content() -> None:
    assert parse_reply("\n\nHi </think>\n", thinking=False) == Reply("", "Hi </think>\n", ())
    assert parse_reply("<think>\na\n</think>\n\nb", thinking=False) == Reply("a", "b", ())


def test_without_tools_a_call_is_content() -> None:
    assert parse_reply(PING, thinking=False) == Reply("", PING, ())


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    parser = ReplyParser(TOOLS)
    assert parser.push("why") == [ReasoningDelta("why")]
    assert parser.push(" <") == [ReasoningDelta(" ")]
    assert parser.push("b>\n") == [ReasoningDelta("<b>")]
    assert parser.push("\nso") == [ReasoningDelta("\n\nso")]
    assert parser.push("\n</think>\n\nOn it") == [ContentDelta("On it")]
    assert parser.push(".\n\n<tool") == [ContentDelta(".")]
    assert parser.push(PING[5:-1]) == []
    assert parser.push(">\n") == [ToolCall("ping", {})]
    assert parser.finish() == []


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"parameters": {}}},
        {"name": "f", "parameters": [1]},
        {"function": 1},
        "f",
    ],
)
def test_a_tool_that_is_no_schema_is_refused(tool: Any) -> None:
    with pytest.raises(GenerationError, match="not a function schema"):
        ReplyParser([tool])


def test_prompt_says_whether_the_reply_is_inside_thinking(qwen_folder: Path) -> None:
    template = ChatTemplate.from_folder(qwen_folder)
    hi = [{"role": "user", "content": "hi"}]
    assert opens_thinking(template.render(hi))
    assert not opens_thinking(template.render(hi, enable_thinking=False))


def _random_value(draw: random.Random, kind: str) -> Any:
    text = "".join(
        draw.choices(["a", " ", "\n", "<b>", "é", '"', "{", "1", "true", "</tool_call>"], k=draw.randint(0, 6))
    )
    return {
        "string": text,
        "integer": draw.randint(-(10**12), 10**12),
        "number": draw.choice([0.5, -1e-9, 3, 2.0]),
        "boolean": draw.random() < 0.5,
        "null": None,
        "array": [text, 1, None, {"x": text}],
        "object": {text: [True, 0.25], "y": {}},
    }[kind]


@pytest.mark.parametrize("seed", range(5))
def test_what_the_template_writes_is_read_back(qwen_folder: Path, seed: int) -> None:
    template = ChatTemplate.from_folder(qwen_folder)
    draw = random.Random(seed)
    kinds = ["string", "integer", "number", "boolean", "null", "array", "object"]
    question = [{"role": "user", "content": "go"}]
    prompt = template.render(question)
    for _ in range(40):
        chosen = draw.choices(kinds, k=draw.randint(0, 5))
        schema = {f"p{i}": {"type": kind} for i, kind in enumerate(chosen)}
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": schema}}}]
        calls = [
            ToolCall("f", {f"p{i}": _random_value(draw, kind) for i, kind in enumerate(chosen)})
            for _ in range(draw.randint(0, 3))
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "reasoning_content": draw.choice(["", "why\n\nso"]),
            "content": draw.choice(["", "On it:\n- a"]),
            "tool_calls": [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls],
        }
        text = template.render([*question, message], add_generation_prompt=False)
        reply = parse_reply(text[len(prompt) :].removesuffix("<|im_end|>\n"), tools)
        assert text.startswith(prompt)
        assert reply == Reply(message["reasoning_content"], message["content"], tuple(calls)), json.dumps(message)
