"""The tool calls in a stream of content, and the text around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deltart.runtime.text.call_tags import Kind, Lexer, Token
from deltart.runtime.text.events import ArgumentsDelta, CallDropped, CallProgress, CallStarted, ContentDelta, ToolCall
from deltart.runtime.text.open_call import OpenCall, Verdict
from deltart.runtime.text.tool_arguments import Schema

_BLOCK = (Kind.OPEN_CALL, Kind.CLOSE_CALL)
_FUNCTION = (Kind.OPEN_FUNCTION, Kind.CLOSE_FUNCTION)


@dataclass(frozen=True)
class Written:
    """The text of what was no content: all of a call, after its ToolCall, and the white space that went with it."""

    text: str


Part = ContentDelta | ToolCall | CallProgress | Written


class CallReader:
    """Splits content into text and calls; the parts' texts add up to what was pushed.

    A call is a <tool_call> block with functions, or a function on offer without the block, unless it stands in
    a code span or fence. What can't be read as a call is text as it was written.

    Args:
        schemas: parameters of each function on offer, by name.
    """

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas, self._lexer, self._code = schemas, Lexer(), _Code()
        self._step: Callable[[Token], None] = self._content
        self._parts: list[Part] = []
        self._call: OpenCall | None = None
        self._announced = False
        self._raw: list[str] = []  # of the block or function at hand
        self._tags, self._depth = _BLOCK, 0  # of the block at hand: what opens and closes it

    def push(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        return self._read(self._lexer.push(text))

    def finish(self) -> list[Part]:
        """The parts still held back, once no more text will come."""
        parts = self._read([self._completed(token) for token in self._lexer.finish()])
        while self._raw:
            if self._call is None:
                self._give_up()
            else:
                self._settle(self._call.finish())
            parts += self._taken()
        return parts

    def _read(self, tokens: list[Token]) -> list[Part]:
        for token in tokens:
            self._step(token)
        return self._taken()

    def _completed(self, token: Token) -> Token:
        """The last token; where only the block's closing tag was due, the beginning of it is taken for it."""
        due = self._step == self._after_call or (self._call is not None and self._call.awaits_block_end)
        return Token(Kind.CLOSE_CALL, token.raw) if due and "</tool_call>".startswith(token.raw) else token

    def _taken(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # One method for each state.

    def _content(self, token: Token) -> None:
        bare = token.kind is Kind.OPEN_FUNCTION and token.name in self._schemas and not self._code.inside
        if token.kind is Kind.OPEN_CALL:
            self._raw, self._tags, self._depth, self._step = [token.raw], _BLOCK, 1, self._head
        elif bare:
            self._raw, self._tags, self._depth = [token.raw], _FUNCTION, 1
            self._begin_call(token)
        else:
            self._text(token.raw)

    def _after_call(self, token: Token) -> None:
        """The block's closing tag has not come: it may yet, or another function."""
        if token.is_blank:
            self._raw.append(token.raw)
        elif token.kind is Kind.CLOSE_CALL:
            self._raw.append(token.raw)
            self._written()
        elif token.kind is Kind.OPEN_FUNCTION and token.name in self._schemas and self._tags is _BLOCK:
            self._raw.append(token.raw)
            self._begin_call(token)
        else:
            self._reread(token)

    def _head(self, token: Token) -> None:
        if token.is_blank:
            self._raw.append(token.raw)
        elif token.kind is Kind.OPEN_FUNCTION:
            self._raw.append(token.raw)
            self._begin_call(token)
        else:
            self._reread(token)

    def _inside(self, token: Token) -> None:
        assert self._call is not None
        self._raw.append(token.raw)
        self._depth += (token.kind is self._tags[0]) - (token.kind is self._tags[1])
        verdict = self._call.feed(token)
        if verdict is Verdict.RESTART:
            self._raw.pop()
            self._call = None
            self._reread(token)
        else:
            self._settle(verdict)

    def _malformed(self, token: Token) -> None:
        """Text up to the block's own end, so that nothing quoted in it is taken for a call."""
        self._depth += (token.kind is self._tags[0]) - (token.kind is self._tags[1])
        self._text(token.raw)
        if self._depth <= 0:
            self._step = self._content

    # What they do.

    def _begin_call(self, token: Token) -> None:
        wrapped = self._tags is _BLOCK
        self._call = OpenCall(token.name, self._schemas.get(token.name, {}), self._schemas.keys(), wrapped)
        self._announced, self._step = False, self._inside

    def _settle(self, verdict: Verdict) -> None:
        call = self._call
        assert call is not None
        if verdict in (Verdict.COMPLETE, Verdict.COMPLETE_OPEN):
            arguments = call.arguments()
            self._progress(call)
            self._parts.append(ToolCall(call.name, arguments))
            self._call = None
            self._close(call.rest, closed=verdict is Verdict.COMPLETE)
        elif verdict is Verdict.MALFORMED:
            self._call = None
            if self._announced:
                self._parts.append(CallDropped())
            self._give_up()
            self._step = self._malformed if self._depth > 0 else self._content
        else:
            self._progress(call)

    def _progress(self, call: OpenCall) -> None:
        if call.started and not self._announced:
            self._announced = True
            self._parts.append(CallStarted(call.name))
        if text := call.take_json():
            self._parts.append(ArgumentsDelta(text))

    def _close(self, rest: list[Token], closed: bool) -> None:
        """After a call: its text is accounted for, and what was read beyond it is read again."""
        beyond = sum(len(token.raw) for token in rest)
        raw = "".join(self._raw)
        self._parts.append(Written(raw[: len(raw) - beyond]))
        self._raw = []
        self._step = self._content if closed else self._after_call
        for token in rest:
            self._step(token)

    def _written(self) -> None:
        self._parts.append(Written("".join(self._raw)))
        self._raw, self._step = [], self._content

    def _give_up(self) -> None:
        """What was held is text."""
        raw, self._raw, self._step = self._raw, [], self._content
        self._text("".join(raw))

    def _reread(self, token: Token) -> None:
        """What was held is text, and `token` is read as what comes after it."""
        self._give_up()
        self._content(token)

    def _text(self, text: str) -> None:
        if text:
            self._code.read(text)
            self._parts.append(ContentDelta(text))


class _Code:
    """Whether a stream of Markdown is inside a code span or fence."""

    def __init__(self) -> None:
        self._fenced, self._line_begin, self._ticks = False, "", 0

    @property
    def inside(self) -> bool:
        return self._fenced or self._ticks % 2 == 1

    def read(self, text: str) -> None:
        first, *lines = text.split("\n")
        self._extend(first)
        for line in lines:
            self._end_line()
            self._extend(line)

    def _extend(self, piece: str) -> None:
        if len(self._line_begin) < 3:
            self._line_begin = (self._line_begin + piece).lstrip()[:3]
        self._ticks += piece.count("`")

    def _end_line(self) -> None:
        self._fenced ^= self._line_begin == "```"
        self._line_begin, self._ticks = "", 0
