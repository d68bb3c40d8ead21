"""The automaton of parameter texts against regular expressions, every token of a vocabulary, and the reply's parser."""

from __future__ import annotations

import random
import re

import pytest

from deltart.runtime.structure.call_text import CLOSE_PARAMETER, CallText
from deltart.runtime.structure.vocabulary import Vocabulary
from deltart.runtime.text.reply import parse_reply
from deltart.runtime.text.tokenizer import Tokenizer
from support.walks import members

TAGS = ["<parameter=", "<function=", "</function>", "</tool_call>", "<tool_call>"]
SPACE = r"\s*"
GAP = r"(?:(?!</parameter>)[\s\S])*?"
LINE = r"\n[ \t]*"
# The same rules in another notation, over text that begins with the newline after the opening tag.
REFUSED = re.compile(
    rf"{LINE}<(?:parameter|function)=|</parameter>{SPACE}(?:<parameter=|<function=|</?tool_call>)"
    rf"|</parameter>{GAP}(?:{LINE}</?tool_call>|</function>{GAP}(?:</?tool_call>|{LINE}</function>))"
    rf"|</function>{SPACE}(?:<parameter=|<function=|</?tool_call>)|</tool_call>{SPACE}<tool_call>"
    rf"|<tool_call>{SPACE}<function="
)
PARTS = [
    *TAGS,
    "</parameter>",
    CLOSE_PARAMETER,
    "\n",
    " ",
    "\t",
    "x>",
    "<",
    "</",
    "a word",
    "</param",
    "=",
    ">",
    "日本",
]


@pytest.fixture(scope="module")
def call_text(vocabulary: Vocabulary) -> CallText:
    return CallText(vocabulary)


def _random_text(rng: random.Random) -> str:
    return "".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 9)))


def _judged(text: str) -> tuple[int | None, int | None]:
    """By regular expressions: where the closing tag ends, and where what is refused does."""
    line = "\n" + text
    close = line.find(CLOSE_PARAMETER)
    refused = min((found.end() for at in range(len(line)) if (found := REFUSED.match(line, at))), default=None)
    return (close + len(CLOSE_PARAMETER) - 1 if close >= 0 else None), (refused - 1 if refused is not None else None)


@pytest.mark.parametrize("seed", range(20))
def test_where_a_text_ends_and_where_it_goes_wrong(call_text: CallText, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        text = _random_text(rng)
        close, refused = _judged(text)
        first = min((at for at in (close, refused) if at is not None), default=None)
        place: int | None = call_text.start
        for read, character in enumerate(text, 1):
            assert place is not None
            place = call_text._walk(place, character.encode())
            if place is None or call_text.ended(place):
                assert (read, place is None) == (first, first == refused)
                break
        else:
            assert first is None


@pytest.mark.parametrize("seed", range(30))
def test_masks_are_what_every_single_token_would_do(call_text: CallText, vocabulary: Vocabulary, seed: int) -> None:
    rng = random.Random(seed)
    place = call_text.start
    for token in vocabulary.encode(_random_text(rng)):
        following = call_text.after(place, token)
        if following is None or call_text.ended(following):
            break
        place = following
    may = {token for token in range(vocabulary.limit) if call_text.after(place, token) is not None}
    assert set(members(call_text.mask(place), vocabulary.limit)) == may


def test_a_token_may_not_run_past_the_closing_tag(call_text: CallText, tokenizer: Tokenizer) -> None:
    place = call_text._walk(call_text.start, b"x\n</parameter>")
    assert place is not None
    assert call_text.after(place, tokenizer.encode_plain("\n\n")[0]) is None
    newline = call_text.after(place, tokenizer.encode_plain("\n")[0])
    assert newline is not None and call_text.ended(newline)


def test_tokens_that_end_a_reply_or_are_special_are_no_text(call_text: CallText, tokenizer: Tokenizer) -> None:
    special = [token for token, is_special in tokenizer.added().items() if is_special]
    for token in (*tokenizer.eos_ids, *special):
        assert call_text.after(call_text.start, token) is None


def test_the_parser_reads_what_was_written(call_text: CallText) -> None:
    """Whatever the automaton lets pass comes out of the reply's parser as it went in."""
    rng, passed = random.Random(0), 0
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}}
    for _ in range(4000):
        text = _random_text(rng)
        place = call_text._walk(call_text.start, text.encode())
        if place is None or call_text.ended(place) or call_text._walk(place, CLOSE_PARAMETER.encode()) is None:
            continue
        passed += "</" in text
        call = f"<tool_call>\n<function=f>\n<parameter=a>\n{text}{CLOSE_PARAMETER}<parameter=b>\ny\n</parameter>\n"
        reply = parse_reply(call + "</function>\n</tool_call>", [tool], thinking=False)
        assert [one.arguments for one in reply.tool_calls] == [{"a": text, "b": "y"}]
    assert passed > 1000
