"""Streams equal whole replies, wherever the engine cuts them.

Replies are made of known parts and written as the checkpoint's template writes them, so what every client has to put
together is known without reading the text.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deltart.runtime.conversation import Prompt
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sequence import Delta, Request, Usage
from deltart.runtime.server.chat.reply import ChatAnswer, ChatChunks
from deltart.runtime.server.collected import Collected
from deltart.runtime.server.errors import RequestError
from deltart.runtime.server.messages.reply import MessageWriter
from deltart.runtime.server.prepare import Prepared
from deltart.runtime.server.replies import ReplyReader, Step
from deltart.runtime.server.responses.reply import ResponseWriter
from deltart.runtime.text.tokenizer import Tokenizer
from support.sse import anthropic_content, chat_message, response_output

NANO = Path(__file__).resolve().parents[3] / "tools" / "nano" / "checkpoint"
STRINGS = {"type": "object", "properties": {name: {"type": "string"} for name in ("path", "content")}}
MIXED = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "deep": {"type": "object"}, "on": {"type": "boolean"}},
}
TOOLS = tuple(
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in (("write_file", STRINGS), ("set", MIXED), ("now", {"type": "object", "properties": {}}))
)
WORDS = (
    "The", " sky", " is", " blue", ".", "\n", "\n\n", "  ", "é", "日本", "👩‍🚀", "```py\n", "x = [1, 2]\n", "```",
    "<b>", "</b>", "<tool", " < ", "</", "think", '{"a": "b"}', "\\n", '"', "\t", "&amp;", "data: ", "[DONE]", "\u2028",
)  # fmt: skip


@dataclass
class Known:
    """A reply's text, and what it says."""

    text: str
    reasoning: str
    content: str
    calls: list[tuple[str, dict[str, Any]]]


def words(draw: random.Random, most: int) -> str:
    return "".join(draw.choices(WORDS, k=draw.randint(0, most)))


def known_reply(draw: random.Random, thinking: bool) -> Known:
    reasoning = words(draw, 12).strip() if thinking else ""
    content = words(draw, 12).strip()
    calls = [known_call(draw) for _ in range(draw.choice((0, 0, 1, 1, 2, 3)))]
    text = f"{reasoning}\n</think>\n\n" if thinking else ""
    text += content
    for i, (name, arguments) in enumerate(calls):
        text += "\n\n" if content and not i else "\n" if i else ""
        text += f"<tool_call>\n<function={name}>\n"
        for key, value in arguments.items():
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text += f"<parameter={key}>\n{written}\n</parameter>\n"
        text += "</function>\n</tool_call>"
    return Known(text, reasoning, content, calls)


def known_call(draw: random.Random) -> tuple[str, dict[str, Any]]:
    name = draw.choice(("write_file", "set", "now"))
    if name == "now":
        return name, {}
    if name == "write_file":
        return name, {"path": f"/tmp/{draw.randint(0, 9)}.py", "content": words(draw, 20)}
    return name, {"n": draw.randint(-5, 5), "deep": {"a": [words(draw, 3), None]}, "on": draw.random() < 0.5}


def plan(thinking: bool, tools: tuple[Any, ...] = TOOLS, one_call: bool = False) -> Prepared:
    request = Request((1,), SamplingParams(stop_token_ids=(7,)))
    return Prepared(request, Prompt((), tools, {}, (1,), thinking), tools, one_call)


def deltas(draw: random.Random, text: str, reason: str = "stop") -> list[Delta]:
    """The text in pieces of every length, the last with the end."""
    pieces = []
    while text:
        cut = draw.choice((1, 1, 2, 3, 7, 40))
        pieces.append(text[:cut])
        text = text[cut:]
    found = [Delta(0, (1,), piece) for piece in pieces]
    return [*found, Delta(0, (), "", (), reason, 0)]  # type: ignore[arg-type]


def steps(reader: ReplyReader, found: list[Delta]) -> list[Step]:
    return [reader.read(delta) for delta in found]


def plain(body: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(body))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(NANO)


def test_a_thousand_replies_cut_anywhere_come_out_whole(tokenizer: Tokenizer) -> None:
    for seed in range(1000):
        draw = random.Random(seed)
        thinking = draw.random() < 0.6
        known = known_reply(draw, thinking)
        made = steps(ReplyReader(0, plan(thinking)), deltas(draw, known.text))
        calls = [(name, arguments) for name, arguments in known.calls]
        check_chat(known, calls, made, tokenizer)
        check_responses(known, calls, made, tokenizer)
        check_messages(known, calls, made)


def check_chat(known: Known, calls: list[Any], made: list[Step], tokenizer: Tokenizer) -> None:
    chunks = ChatChunks("k", 0, "m", tokenizer)
    streamed = chat_message(plain([chunks.first(0), *(chunk for step in made for chunk in chunks.of(step))]))
    reply = Collected()
    for step in made:
        reply.add(step)
    (choice,) = plain(ChatAnswer("k", 0, "m", tokenizer).of([reply], Usage()))["choices"]
    whole = choice["message"]
    assert streamed["content"] == (whole["content"] or "") == known.content
    assert streamed["reasoning_content"] == (whole["reasoning_content"] or "") == known.reasoning
    found = [(call["name"], json.loads(call["arguments"])) for call in streamed["tool_calls"]]
    functions = [call["function"] for call in whole.get("tool_calls", ())]
    assert found == [(f["name"], json.loads(f["arguments"])) for f in functions] == calls
    assert [call["id"] for call in streamed["tool_calls"]] == [call["id"] for call in whole.get("tool_calls", ())]
    assert streamed["finish_reason"] == choice["finish_reason"] == ("tool_calls" if calls else "stop")


def check_responses(known: Known, calls: list[Any], made: list[Step], tokenizer: Tokenizer) -> None:
    writer = ResponseWriter({"id": "resp_k"}, tokenizer, sealed=False)
    stream = plain([*writer.begin(), *(event for step in made for event in writer.add(step)), *writer.end(Usage())])
    built, told = response_output(stream), stream[-1]["response"]["output"]
    assert len(built) == len(told)
    for item, final in zip(built, told, strict=True):
        text = final["arguments"] if final["type"] == "function_call" else final["content"][0]["text"]
        assert (item["type"], item["id"], item["pieces"]) == (final["type"], final["id"], text)
    texts = {kind: [i["pieces"] for i in built if i["type"] == kind] for kind in ("reasoning", "message")}
    assert texts == {
        "reasoning": [known.reasoning] if known.reasoning else [],
        "message": [known.content] if known.content else [],
    }
    assert [(i["name"], json.loads(i["pieces"])) for i in built if i["type"] == "function_call"] == calls


def check_messages(known: Known, calls: list[Any], made: list[Step]) -> None:
    writer = MessageWriter("k", "m")
    stream = plain([*writer.begin(Usage()), *(e for step in made for e in writer.add(step)), *writer.end(Usage())])
    built, told = anthropic_content(stream), plain(writer.body(Usage()))["content"]
    expected = [("thinking", known.reasoning)] * bool(known.reasoning) + [("text", known.content)] * bool(known.content)
    assert [(b["type"], b["pieces"]) for b in built if b["type"] != "tool_use"] == expected
    assert [(b["type"], b[b["type"]]) for b in told if b["type"] != "tool_use"] == expected
    assert [(b["name"], json.loads(b["pieces"])) for b in built if b["type"] == "tool_use"] == calls
    assert [(b["name"], b["input"]) for b in told if b["type"] == "tool_use"] == calls
    assert stream[-2]["delta"]["stop_reason"] == ("tool_use" if calls else "end_turn")


def test_no_tag_leaks_when_a_reply_is_cut_at_its_limit(tokenizer: Tokenizer) -> None:
    """Cut after every token: what was said is a beginning of the whole, and a call is whole or can't be read."""
    arguments = {"path": "a", "content": "print('<b>')\n"}
    call = written("write_file", arguments)
    ids = tokenizer.encode(f"Hm.\n</think>\n\nDo it.\n\n{call}")
    for cut in range(len(ids)):
        reply = Collected()
        text = tokenizer.decode(ids[:cut])
        for step in steps(ReplyReader(0, plan(True)), deltas(random.Random(cut), text, "length")):
            reply.add(step)
        assert "Hm.".startswith(reply.reasoning.strip("\n"))
        assert "Do it.".startswith(reply.content.strip("\n"))
        assert reply.reason == "length"
        whole = text.rstrip().endswith("</function>")  # nothing but the block's own end is missing
        for started in reply.calls:
            if whole:
                assert json.loads(started.arguments) == arguments
            else:
                with pytest.raises(ValueError):
                    json.loads(started.arguments)


def written(name: str, arguments: dict[str, str]) -> str:
    values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"


def test_one_call_ends_the_reply_when_calls_may_not_be_parallel() -> None:
    reader = ReplyReader(0, plan(False, one_call=True))
    text = written("now", {}) + "\n" + written("set", {"n": "1"})
    reply = Collected()
    for step in steps(reader, deltas(random.Random(0), text)):
        reply.add(step)
    assert [call.name for call in reply.calls] == ["now"]
    assert reader.cut and reply.reason == "tool_calls"


def test_only_stops_that_the_request_named_are_told() -> None:
    for stop, told in (("END", "END"), (7, 7), (151645, None)):
        reader = ReplyReader(0, plan(False))
        assert reader.read(Delta(0, (), "x", (), "stop", stop)).end.stop == told  # type: ignore[union-attr]


@pytest.mark.parametrize(("reason", "status"), [("timeout", 504), ("cancelled", 503)])
def test_cut_replies_are_errors(reason: Any, status: int) -> None:
    with pytest.raises(RequestError) as refused:
        ReplyReader(0, plan(False)).read(Delta(0, (), "", (), reason))
    assert refused.value.status == status
