"""One function of a tool call, read tag by tag: where each value ends, and whether the whole is a call.

Models leave tags out, write prose between them, and quote calls inside a value. The rules, in short:

- A tag is structure when it begins a line, or where the value began on the line of its own opening tag.
- A value ends at </parameter> when a parameter, the function's end or the block's end follows. Text in between
  is passed over if such a tag follows it, and is part of the value if another </parameter> does.
- A missing </parameter> is made up before the next expected parameter and before the end of the function.
- A call or parameter quoted in a value runs to its own closing tag and belongs to the value.
- What else comes is malformed: a parameter given twice, a value that ends without its tag and holds markup.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from deltart.runtime.text.call_arguments import ArgumentsWriter
from deltart.runtime.text.call_tags import Kind, Token
from deltart.runtime.text.tool_arguments import Schema

_CLOSER = {
    Kind.OPEN_CALL: Kind.CLOSE_CALL,
    Kind.OPEN_FUNCTION: Kind.CLOSE_FUNCTION,
    Kind.OPEN_PARAMETER: Kind.CLOSE_PARAMETER,
}


class Verdict(Enum):
    """What a token makes of the call."""

    GOING = auto()
    COMPLETE = auto()  # the block is closed with it
    COMPLETE_OPEN = auto()  # the call is complete; the block's closing tag has not come
    MALFORMED = auto()
    RESTART = auto()  # a new block begins before anything of this one was given


@dataclass
class _Quote:
    """A call, function or parameter quoted in a value, up to its own closing tag."""

    kind: Kind
    depth: int = 1

    def closes(self, token: Token) -> bool:
        self.depth += (token.kind is self.kind) - (token.kind is _CLOSER[self.kind])
        return self.depth == 0


class OpenCall:
    """The call of function `name`, whose tag has just been read.

    Attributes:
        started: the call's first parameter or its end has been seen.
        rest: after COMPLETE_OPEN, the tokens that come after the call.

    Args:
        schema: JSON schema of the function's parameters.
        offered: names of the functions on offer.
        wrapped: the function stands in a <tool_call> block.
    """

    def __init__(self, name: str, schema: Schema, offered: Collection[str], wrapped: bool) -> None:
        self.name, self.started, self.rest = name, False, list[Token]()
        self._writer, self._offered, self._wrapped = ArgumentsWriter(schema), offered, wrapped
        properties = schema.get("properties")
        self._properties = properties if isinstance(properties, dict) else {}
        self._step: Callable[[Token], Verdict] = self._body
        self._line_begins = False  # nothing but blanks since the last newline
        self._begins_line = False  # the same, before the token at hand
        self._pending: list[Token] = []  # may end the value, or belong to it
        self._call_ends = 0  # tokens of _pending up to the last closing tag
        self._in_value = self._inline = self._untouched = self._markup = False
        self._firm = self._explicit = False  # of the closing tags in _pending
        self._quote: _Quote | None = None

    def feed(self, token: Token) -> Verdict:
        """Read one token."""
        self._begins_line = self._line_begins
        if token.kind is Kind.TEXT:
            line = token.raw.rpartition("\n")
            self._line_begins = (bool(line[1]) or self._line_begins) and not line[2].strip()
        else:
            self._line_begins = False
        return self._step(token)

    def finish(self) -> Verdict:
        """No more will come: COMPLETE, COMPLETE_OPEN with `rest`, or MALFORMED for a call cut short."""
        if self._step == self._after_function and not self._firm:
            return Verdict.MALFORMED
        ends = (self._after_function, self._trailing, self._loose_end, self._after_block)
        return self._complete_open() if self._step in ends else Verdict.MALFORMED

    @property
    def awaits_block_end(self) -> bool:
        """Nothing is missing but the block's closing tag."""
        return self._step in (self._after_function, self._trailing) and self._firm and self._wrapped

    def arguments(self) -> dict[str, Any]:
        """The arguments of a complete call."""
        return self._writer.finish()

    def take_json(self) -> str:
        """The JSON text of the arguments that has become certain since the last call of this."""
        return self._writer.take() if self.started else ""

    # Between the parameters.

    def _body(self, token: Token) -> Verdict:
        match token.kind:
            case Kind.TEXT:
                if not token.is_blank:
                    self._step = self._body_prose
                return Verdict.GOING
            case Kind.OPEN_PARAMETER:
                return self._open(token.name)
            case Kind.CLOSE_FUNCTION:
                return self._hold(token, self._after_function, firm=True, explicit=True)
            case Kind.CLOSE_CALL if self._wrapped:
                return self._complete()
            case Kind.OPEN_CALL:
                return Verdict.RESTART
            case _:
                return Verdict.MALFORMED

    def _body_prose(self, token: Token) -> Verdict:
        if token.kind is Kind.TEXT:
            return Verdict.GOING
        if token.kind is Kind.OPEN_PARAMETER and self._begins_line and self._expects(token.name):
            return self._open(token.name)
        return Verdict.RESTART if token.kind is Kind.OPEN_CALL else Verdict.MALFORMED

    def _open(self, name: str) -> Verdict:
        if name in self._writer:
            return Verdict.MALFORMED
        self._writer.open(name)
        self._in_value, self._untouched, self._markup, self._inline = True, True, False, False
        self._pending, self._step, self.started = [], self._value, True
        return Verdict.GOING

    # Inside a value.

    def _value(self, token: Token) -> Verdict:
        if self._quote is not None:
            if self._quote.closes(token):
                self._quote = None
            return self._take(token)
        if self._untouched:
            self._inline = not token.raw.startswith("\n")
        structural = self._begins_line or self._inline
        match token.kind:
            case Kind.TEXT:
                return self._take(token)
            case Kind.OPEN_PARAMETER if structural and not self._markup and self._expects(token.name):
                return self._next(token.name)
            case Kind.OPEN_PARAMETER | Kind.OPEN_FUNCTION:
                self._quote = _Quote(token.kind) if self._begins_line else None
                return self._take(token)
            case Kind.OPEN_CALL:
                return self._hold(token, self._maybe_quoted)
            case Kind.CLOSE_PARAMETER:
                return self._hold(token, self._after_parameter, firm=structural, explicit=True)
            case Kind.CLOSE_FUNCTION if structural and not self._markup:
                return self._hold(token, self._after_function, firm=True)
            case Kind.CLOSE_CALL if structural and self._wrapped and not self._markup:
                return self._hold(token, self._after_block)
            case Kind.BROKEN if structural:
                return Verdict.MALFORMED
            case _:
                return self._take(token)

    def _maybe_quoted(self, token: Token) -> Verdict:
        """<tool_call> in a value: a quoted call when a function follows, else a word."""
        if token.is_blank:
            self._pending.append(token)
            return Verdict.GOING
        self._return_pending()
        if token.kind is Kind.OPEN_FUNCTION:
            self._quote = _Quote(Kind.OPEN_CALL)
            return self._take(token)
        return self._value(token)

    # After tags that may have ended the value.

    def _after_parameter(self, token: Token) -> Verdict:
        match token.kind:
            case Kind.TEXT:
                return self._after_text(token, self._prose, self._firm)
            case Kind.OPEN_PARAMETER if self._expects(token.name) or (self._firm and token.name not in self._writer):
                return self._next(token.name)
            case Kind.CLOSE_FUNCTION:
                self._firm |= self._begins_line
                return self._hold_too(token, self._after_function)
            case Kind.CLOSE_CALL if self._wrapped and (self._firm or self._begins_line):
                return self._complete()
            case Kind.CLOSE_PARAMETER:
                return self._belongs_to_value(token)
            case _:
                return Verdict.MALFORMED if self._firm else self._belongs_to_value(token)

    def _prose(self, token: Token) -> Verdict:
        """Text after a </parameter>: between the parameters, or of the value."""
        structural = self._begins_line or self._inline
        match token.kind:
            case Kind.CLOSE_PARAMETER:
                return self._belongs_to_value(token)
            case Kind.OPEN_PARAMETER if structural and self._expects(token.name):
                return self._next(token.name)
            case Kind.CLOSE_FUNCTION if structural:
                return self._hold_too(token, self._after_function)
            case Kind.TEXT:
                return self._hold_too(token, self._prose)
            case _:
                return Verdict.MALFORMED if self._begins_line else self._hold_too(token, self._prose)

    def _after_function(self, token: Token) -> Verdict:
        self._firm |= self._begins_line and token.kind is Kind.CLOSE_CALL
        match token.kind:
            case Kind.TEXT if not self._wrapped and self._firm and not token.is_blank:
                return self._complete_open(token)
            case Kind.TEXT:
                return self._after_text(token, self._trailing, self._firm and self._explicit)
            case Kind.CLOSE_CALL:
                return self._complete() if self._firm else self._hold_too(token, self._loose_end)
            case Kind.OPEN_CALL if self._firm:
                return self._complete_open(token)
            case Kind.OPEN_FUNCTION if self._firm and token.name in self._offered:
                return self._complete_open(token)
            case Kind.CLOSE_PARAMETER | Kind.CLOSE_FUNCTION if self._in_value:
                return self._belongs_to_value(token)
            case _:
                return Verdict.MALFORMED if self._firm else self._belongs_to_value(token)

    def _trailing(self, token: Token) -> Verdict:
        """Text after </function> inside the block: passed over if the block's end follows, else after the call."""
        match token.kind:
            case Kind.CLOSE_CALL:
                return self._complete()
            case Kind.OPEN_CALL:
                return self._complete_open(token)
            case Kind.CLOSE_PARAMETER if self._in_value:
                return self._belongs_to_value(token)
            case _ if self._begins_line and token.kind is not Kind.TEXT:
                return Verdict.MALFORMED
            case _:
                return self._hold_too(token, self._trailing)

    def _loose_end(self, token: Token) -> Verdict:
        """All three closing tags in the middle of a line: the end if the line ends with them."""
        if token.kind is Kind.OPEN_CALL or (token.kind is Kind.TEXT and token.raw.startswith("\n")):
            return self._complete_open(token)
        return self._belongs_to_value(token)

    def _after_block(self, token: Token) -> Verdict:
        """</tool_call> where neither the value nor the function was closed."""
        if token.is_blank:
            return self._hold_too(token, self._after_block)
        return self._complete_open(token) if token.kind is Kind.OPEN_CALL else self._belongs_to_value(token)

    # What the steps are made of.

    def _after_text(self, token: Token, prose: Callable[[Token], Verdict], allowed: bool) -> Verdict:
        """White space changes nothing; other text goes to `prose` where it is `allowed`, else to the value."""
        if token.is_blank:
            return self._hold_too(token, self._step)
        if not allowed:
            return self._belongs_to_value(token) if self._in_value else Verdict.MALFORMED
        self._step = prose
        return prose(token)

    def _expects(self, name: str) -> bool:
        return name not in self._writer and (not self._properties or name in self._properties)

    def _hold(
        self, token: Token, step: Callable[[Token], Verdict], firm: bool = False, explicit: bool = False
    ) -> Verdict:
        self._pending, self._firm, self._explicit = [], firm, explicit
        return self._hold_too(token, step)

    def _hold_too(self, token: Token, step: Callable[[Token], Verdict]) -> Verdict:
        self._pending.append(token)
        if token.kind is not Kind.TEXT and self._step != self._trailing:
            self._call_ends = len(self._pending)
        self._step = step
        return Verdict.GOING

    def _take(self, token: Token) -> Verdict:
        self._untouched = False
        self._markup |= token.kind is not Kind.TEXT
        self._writer.text(token.raw)
        return Verdict.GOING

    def _return_pending(self) -> None:
        """What was held belongs to the value after all."""
        for token in self._pending:
            self._take(token)
        self._pending, self._step = [], self._value

    def _belongs_to_value(self, token: Token) -> Verdict:
        """What was held belongs to the value, and `token` comes after it."""
        self._return_pending()
        return self._value(token)

    def _end_value(self) -> None:
        self._writer.close()
        self._pending, self._in_value = [], False

    def _next(self, name: str) -> Verdict:
        """The value has ended, and that of parameter `name` begins."""
        self._end_value()
        return self._open(name)

    def _complete(self) -> Verdict:
        if self._in_value:
            self._end_value()
        self.started = True
        return Verdict.COMPLETE

    def _complete_open(self, *after: Token) -> Verdict:
        """Complete before the texts held since its last closing tag, and `after`, which come after the call."""
        self.rest = [*self._pending[self._call_ends :], *after]
        self._complete()
        return Verdict.COMPLETE_OPEN
