"""Properties of reading calls: replies that the checkpoint's template wrote, cut, damaged and quoted; random tags."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deltart.runtime.text.chat import ChatTemplate
from deltart.runtime.text.reply import (
    ArgumentsDelta,
    CallDropped,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    ReplyParser,
    ReplyStream,
    ToolCall,
    parse_reply,
)

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
TEMPLATE = ChatTemplate.from_folder(NANO)
KINDS = {"s": "string", "i": "integer", "o": "object", "a": "array"}
TOOLS: list[dict[str, Any]] = [
    {"name": name, "parameters": {"properties": {key: {"type": kind} for key, kind in KINDS.items()}}} for name in "fg"
]
TAGS = [
    "<tool_call>", "</tool_call>", "<function=f>", "<function=g>", "<function=x>", "</function>", "<parameter=s>",
    "<parameter=i>", "<parameter=z>", "</parameter>", "<think>", "</think>", "<parameter=", "<function=f", "</", "<",
]  # fmt: skip
PIECES = [
    *TAGS,
    "\n",
    "\n\n",
    " ",
    "a",
    "b c",
    "```",
    "`",
    "12",
    '{"k": [1]}',
    "</parameter>\n",
    "</function>\n</tool_call>",
]

plain = st.text(st.sampled_from("ab \n\"'\\{}é😀1`"), max_size=12)
values = {
    "s": plain,
    "i": st.integers(-(10**20), 10**20),
    "o": st.dictionaries(plain, plain, max_size=2),
    "a": st.lists(st.one_of(plain, st.integers(), st.none(), st.booleans()), max_size=3),
}
calls = st.builds(
    ToolCall,
    st.sampled_from("fg"),
    st.lists(st.sampled_from("sioa"), unique=True, max_size=4).flatmap(
        lambda keys: st.fixed_dictionaries({key: values[key] for key in keys})
    ),
)
tag_soup = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


def _reply_text(wanted: list[ToolCall], content: str = "") -> str:
    """An assistant's turn as the checkpoint's template writes it, after its thinking."""
    question = [{"role": "user", "content": "go"}]
    made = [{"function": {"name": call.name, "arguments": call.arguments}} for call in wanted]
    answer = {"role": "assistant", "reasoning_content": "", "content": content, "tool_calls": made}
    prompt, whole = TEMPLATE.render(question), TEMPLATE.render([*question, answer], add_generation_prompt=False)
    return whole[len(prompt) :].removesuffix("<|im_end|>\n").partition("</think>\n\n")[2]


def _found(text: str) -> list[ToolCall]:
    return list(parse_reply(text, TOOLS, thinking=False).tool_calls)


def _stream(text: str, cuts: list[int], thinking: bool) -> list[Event]:
    stream = ReplyStream(TOOLS, thinking)
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    events = [event for a, b in itertools.pairwise(edges) for event in stream.push(text[a:b])]
    return _joined(events + stream.finish())


def _joined(events: list[Event]) -> list[Event]:
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, ReasoningDelta | ContentDelta | ArgumentsDelta) and type(last) is type(event):
            joined[-1] = type(event)(last.text + event.text)  # type: ignore[union-attr]
        else:
            joined.append(event)
    return joined


@given(st.lists(calls, max_size=3), plain.map(str.strip))
def test_what_the_template_writes_is_read_back(wanted: list[ToolCall], content: str) -> None:
    reply = parse_reply(_reply_text(wanted, content), TOOLS, thinking=False)
    assert (list(reply.tool_calls), reply.content) == (wanted, content)


@given(st.lists(calls, min_size=1, max_size=3))
@settings(max_examples=30)
def test_a_reply_cut_anywhere_makes_no_other_call(wanted: list[ToolCall]) -> None:
    text = _reply_text(wanted)
    for end in range(len(text)):
        found = _found(text[:end])
        assert found == wanted[: len(found)]


@given(st.lists(calls, min_size=1, max_size=2), st.data())
@settings(max_examples=200)
def test_a_lost_tag_makes_no_other_call(wanted: list[ToolCall], data: st.DataObject) -> None:
    """Each call is found as it was meant, or not at all. (Without its name no parameter can be known.)"""
    text = _reply_text(wanted)
    tags = [tag for tag in TAGS[:10] if not tag.startswith("<parameter=")]
    places = [(at, tag) for tag in tags for at in range(len(text)) if text.startswith(tag, at)]
    at, tag = data.draw(st.sampled_from(places))
    end = at + len(tag)
    for call in _found(text[:at] + text[end + text.startswith("\n", end) :]):
        assert call in wanted


@given(calls, plain, plain)
def test_a_call_quoted_in_a_value_is_the_value(quoted: ToolCall, before: str, after: str) -> None:
    value = f"{before}\n{_reply_text([quoted])}\n{after}"
    wanted = [ToolCall("f", {"s": value})]
    assert _found(_reply_text(wanted)) == wanted


@given(tag_soup, st.lists(st.integers(0, 10**6), max_size=6), st.booleans())
@settings(max_examples=500)
def test_events_do_not_depend_on_the_cuts(text: str, cuts: list[int], thinking: bool) -> None:
    whole = _stream(text, [], thinking)
    assert _stream(text, cuts, thinking) == whole
    assert _stream(text, list(range(len(text))), thinking) == whole


@given(tag_soup, st.booleans())
@settings(max_examples=500)
def test_events_of_a_call_add_up(text: str, thinking: bool) -> None:
    started: str | None = None
    written = ""
    for event in _stream(text, [], thinking):
        if isinstance(event, CallStarted):
            assert started is None
            started, written = event.name, ""
        elif isinstance(event, ArgumentsDelta):
            assert started is not None
            written += event.text
        elif isinstance(event, ToolCall):
            assert (started, written) == (event.name, json.dumps(event.arguments, ensure_ascii=False))
            started = None
        elif isinstance(event, CallDropped):
            assert started is not None
            started = None
        else:
            assert started is None
    assert started is None


@given(tag_soup)
@settings(max_examples=500)
def test_no_argument_ends_in_markup_that_the_text_did_not_close(text: str) -> None:
    """A value that holds a tag opening a parameter on a line of its own holds the tag that closes it, too."""
    for call in _found(text):
        for value in call.arguments.values():
            lines = str(value).split("\n")
            opened = [line for line in lines if line.strip() in ("<parameter=s>", "<parameter=i>")]
            assert not opened or "</parameter>" in str(value)


def test_arguments_come_while_they_are_written() -> None:
    stream = ReplyStream(TOOLS, thinking=False)
    assert stream.push("<tool_call>\n<function=f>\n") == []
    assert stream.push("<parameter=s>\n") == [CallStarted("f"), ArgumentsDelta('{"s": "')]
    assert stream.push('one "two"\n') == [ArgumentsDelta('one \\"two\\"')]
    assert stream.push("three</para") == [ArgumentsDelta("\\nthree")]
    assert stream.push("meter>\n<parameter=i>\n1") == [ArgumentsDelta('", "i": ')]
    assert stream.push("2\n</parameter>\n</function>\n") == []
    assert stream.push("</tool_call>") == [ArgumentsDelta("12}"), ToolCall("f", {"s": 'one "two"\nthree', "i": 12})]
    assert stream.finish() == []


def test_a_started_call_that_ends_early_is_dropped() -> None:
    text = "<tool_call>\n<function=f>\n<parameter=s>\none"
    stream = ReplyStream(TOOLS, thinking=False)
    assert _joined(stream.push(text)) == [CallStarted("f"), ArgumentsDelta('{"s": "one')]
    assert stream.finish() == [CallDropped(), ContentDelta(text)]


def test_time_is_linear_in_what_is_pushed_character_by_character() -> None:
    """A factor of 8 in length, compared with what quadratic time would make of it (64)."""

    def seconds(text: str) -> float:
        began = time.process_time()
        parser = ReplyParser(TOOLS, thinking=True)
        for character in text:
            parser.push(character)
        parser.finish()
        return time.process_time() - began

    for piece in ("\n", "<", "`", "<tool_call>", "a</parameter>", "<parameter=s>\n", "\n</parameter>\n</function>\nx"):
        for start in ("", "</think>", "</think><tool_call><function=f><parameter=s>\n"):
            short = 500 // len(piece)
            once = min(seconds(start + piece * short) for _ in range(2))
            assert min(seconds(start + piece * short * 8) for _ in range(2)) < 30 * once, (start, piece)
