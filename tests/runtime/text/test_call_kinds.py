"""Tool calls as models really write them, kind by kind: what the call is, or that there is none.

The right reading of each is the call that the vendor's template would have written, before what went wrong.
"""

from __future__ import annotations

from typing import Any

import pytest

from deltart.runtime.text.reply import ReplyParser, ToolCall, parse_reply

Calls = list[tuple[str, dict[str, Any]]]


def _tool(name: str, **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [
    _tool("write", path="string", content="string"),
    _tool("weather", city="string", days="integer"),
    _tool("ping"),
]


def _value(name: str, text: str) -> str:
    return f"<parameter={name}>\n{text}\n</parameter>\n"


def _function(name: str, body: str = "") -> str:
    return f"<function={name}>\n{body}</function>\n"


def _block(body: str) -> str:
    return f"<tool_call>\n{body}</tool_call>"


OSLO = _value("city", "Oslo")
WEATHER = _function("weather", OSLO)
FORECAST = _function("weather", OSLO + _value("days", "3"))
PING = _function("ping")
ASKED: Calls = [("weather", {"city": "Oslo"})]
ASKED_DAYS: Calls = [("weather", {"city": "Oslo", "days": 3})]
PINGED: Calls = [("ping", {})]
NONE: Calls = []
QUOTED = f"Like this:\n{_block(WEATHER)}\nand so on"


def _write(content: str) -> str:
    return _block(_function("write", _value("path", "a.md") + _value("content", content)))


def _written(content: str) -> Calls:
    return [("write", {"path": "a.md", "content": content})]


MISSING_CLOSERS: dict[str, tuple[str, Calls]] = {
    "value, before a parameter": (FORECAST.replace("Oslo\n</parameter>\n", "Oslo\n"), ASKED_DAYS),
    "value, before the end": (WEATHER.replace("\n</parameter>", ""), ASKED),
    "value, on one line": ("<function=weather><parameter=city>Oslo<parameter=days>3</function>", ASKED_DAYS),
    "both values": ("<function=weather>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</function>\n", ASKED_DAYS),
    "function": (WEATHER.replace("</function>\n", ""), ASKED),
    "function without parameters": ("<function=ping>\n", PINGED),
    "value and function": ("<function=weather>\n<parameter=city>\nOslo\n", ASKED),
    "name's bracket of a parameter": (FORECAST.replace("days>", "days"), NONE),
    "name's bracket of a function": (FORECAST.replace("weather>", "weather"), NONE),
    "value of an unknown parameter": (
        FORECAST.replace("days", "nights").replace("Oslo\n</parameter>\n", "Oslo\n"),
        NONE,
    ),
    "value that quotes markup": (
        "<function=weather>\n<parameter=city>\nan </x> and a </parameter> b\n</function>\n",
        NONE,
    ),
}
PROSE: dict[str, tuple[str, Calls]] = {
    "between parameters": (FORECAST.replace("\n<parameter=days", "\nNow the days:\n<parameter=days"), ASKED_DAYS),
    "several lines": (FORECAST.replace("\n<parameter=days", "\n\nI think\nthree.\n\n<parameter=days"), ASKED_DAYS),
    "on the line of the tag": (FORECAST.replace("\n<parameter=days", " and\n<parameter=days"), ASKED_DAYS),
    "before the first parameter": (FORECAST.replace("weather>\n", "weather>\nI look it up.\n"), ASKED_DAYS),
    "after the last parameter": (FORECAST.replace("</function>", "That is it.\n</function>"), ASKED_DAYS),
    "after the function": (f"{FORECAST}That is it.\n", ASKED_DAYS),
    "naming a tag": (FORECAST.replace("\n<parameter=days", "\nand the `<parameter=x>`:\n<parameter=days"), ASKED_DAYS),
    "in one line": (
        "<function=weather><parameter=city>Oslo</parameter> for <parameter=days>3</parameter></function>",
        ASKED_DAYS,
    ),
    "instead of parameters": ("<function=ping>\nhm\n</function>\n", NONE),
    "before an unknown parameter": (FORECAST.replace("\n<parameter=days", "\nNow:\n<parameter=nights"), NONE),
    "before a parameter given already": (FORECAST.replace("\n<parameter=days", "\nNow:\n<parameter=city"), NONE),
}
FUNCTIONS: dict[str, tuple[str, Calls]] = {
    "two": (WEATHER + PING, ASKED + PINGED),
    "two, reversed": (PING + WEATHER, PINGED + ASKED),
    "three": (PING + WEATHER + PING, PINGED + ASKED + PINGED),
    "two of one name": (WEATHER + FORECAST, ASKED + ASKED_DAYS),
    "two on one line": ("<function=ping></function><function=ping></function>", PINGED + PINGED),
    "a blank line between": (f"{WEATHER}\n\n{PING}", ASKED + PINGED),
    "the second cut short": (f"{PING}<function=weather>\n<parameter=city>\nOs", PINGED),
    "the second one unknown": (WEATHER + _function("remove"), NONE),
    "none": ("\n", NONE),
    "inside each other": ("<function=ping>\n<function=ping>\n</function>\n</function>\n", NONE),
}
BLOCKS: dict[str, tuple[str, Calls]] = {
    "no opening": (f"{WEATHER}</tool_call>", ASKED),
    "no opening, after text": (f"I look it up.\n\n{WEATHER}</tool_call>", ASKED),
    "neither": (WEATHER, ASKED),
    "neither, two functions": (WEATHER + PING, ASKED + PINGED),
    "no opening, two calls": (f"{WEATHER}</tool_call>\n{PING}</tool_call>", ASKED + PINGED),
    "no closing": (f"<tool_call>\n{WEATHER}", ASKED),
    "no closing, another call": (f"<tool_call>\n{WEATHER}{_block(PING)}", ASKED + PINGED),
    "no closing, text after": (f"<tool_call>\n{WEATHER}\nDone.", ASKED),
    "closing twice": (f"{_block(WEATHER)}\n</tool_call>", ASKED),
    "opening twice": (f"<tool_call>\n{_block(WEATHER)}", ASKED),
    "no opening, unknown function": (f"{_function('remove')}</tool_call>", NONE),
    "no opening, unfinished": ("<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</tool_call>", NONE),
    "no opening, in a fence": (f"As in\n```xml\n{WEATHER}```\n", NONE),
    "no opening, in a code span": ("Write `<function=ping></function>`.", NONE),
    "no opening, a mention": ("I call <function=ping> when I must.", NONE),
}
QUOTES: dict[str, tuple[str, Calls]] = {
    "a whole call": (_write(QUOTED), _written(QUOTED)),
    "a call at the value's end": (_write(_block(WEATHER)), _written(_block(WEATHER))),
    "two calls": (_write(f"{QUOTED}\n{QUOTED}"), _written(f"{QUOTED}\n{QUOTED}")),
    "a function": (_write(f"x\n{WEATHER}y"), _written(f"x\n{WEATHER}y")),
    "a parameter": (_write(f"x\n{_value('size', '1')}y"), _written(f"x\n{_value('size', '1')}y")),
    "the value's own parameter": (_write(f"x\n{_value('content', '1')}y"), _written(f"x\n{_value('content', '1')}y")),
    "the end of a parameter": (_write("<p>\n</parameter>\n</p>"), _written("<p>\n</parameter>\n</p>")),
    "tags within lines": (_write("a </tool_call> b </function> c"), _written("a </tool_call> b </function> c")),
    "all ends within a line": (
        _write("ends with </parameter></function></tool_call> always"),
        _written("ends with </parameter></function></tool_call> always"),
    ),
    "an opening tag": (_write("Write <tool_call> first."), _written("Write <tool_call> first.")),
    "on one line": (
        "<tool_call><function=write><parameter=content>a </parameter> b</parameter></function></tool_call>",
        [("write", {"content": "a </parameter> b"})],
    ),
    "a call, cut short after it": (_write(QUOTED)[:-50], NONE),
    "a call, the value not closed": (_write(QUOTED).replace("so on\n</parameter>\n", "so on\n"), NONE),
    "a call, nothing closed": (f"<tool_call>\n<function=write>\n<parameter=content>\n{QUOTED}", NONE),
}
THINKING: dict[str, tuple[str, Calls]] = {
    "a call": (f"I must ask.\n\n{_block(WEATHER)}", ASKED),
    "two calls": (f"I must ask.\n{_block(WEATHER)}\n{_block(PING)}\n", ASKED + PINGED),
    "nothing but a call": (_block(WEATHER), ASKED),
    "a call without its block": (f"I must ask.\n{WEATHER}", ASKED),
    "the tag named before": (f"I write <tool_call> and\n{_block(WEATHER)}", ASKED),
    "no last tag": (f"I must ask.\n<tool_call>\n{WEATHER}", ASKED),
    "text after it": (f"Perhaps:\n{_block(WEATHER)}\nNo, better not", NONE),
    "an unknown function": (f"So:\n{_block(_function('remove'))}", NONE),
    "cut short": (f"So:\n{_block(WEATHER)[:-35]}", NONE),
    "a draft, then a call": (f"Draft:\n{_block(PING)}\n</think>\n\n{_block(WEATHER)}", ASKED),
    "a draft, then an answer": (f"Draft:\n{_block(PING)}\n</think>\n\nHello", NONE),
    "two drafts": (f"{_block(PING)}\n{_block(PING)}</think>", NONE),
}
KINDS = {
    **{f"missing: {name}": (_block(text), calls, False) for name, (text, calls) in MISSING_CLOSERS.items()},
    **{f"prose: {name}": (_block(text), calls, False) for name, (text, calls) in PROSE.items()},
    **{f"functions: {name}": (_block(text), calls, False) for name, (text, calls) in FUNCTIONS.items()},
    **{f"block: {name}": (*case, False) for name, case in BLOCKS.items()},
    **{f"quote: {name}": (*case, False) for name, case in QUOTES.items()},
    **{f"thinking: {name}": (*case, True) for name, case in THINKING.items()},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_called(name: str) -> None:
    text, calls, thinking = KINDS[name]
    reply = parse_reply(text, TOOLS, thinking)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == calls
    if not calls and not thinking:
        assert reply.content == text, "what is no call stays as it was written"
    parser = ReplyParser(TOOLS, thinking)
    events = [event for character in text for event in parser.push(character)] + parser.finish()
    assert tuple(event for event in events if isinstance(event, ToolCall)) == reply.tool_calls


def test_text_around_calls_is_content() -> None:
    assert parse_reply(f"A.\n\n{WEATHER}</tool_call>\n\nB.\n", TOOLS, False).content == "A.\n\n\n\nB.\n"
    assert parse_reply(f"I think.\n\n{_block(WEATHER)}\n", TOOLS, True).reasoning == "I think."
