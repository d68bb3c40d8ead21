"""A chat reply on the standard streams: the answer plain, the thinking before it apart."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deltart.cli.streams import shown_to_people
from deltart.runtime.text.reply import ContentDelta, Event, ReasoningDelta, ReplyParser, ToolCall

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class ReplyScreen:
    """Prints a reply while it comes.

    On a terminal thinking is dim, with a blank line after it. Elsewhere it goes to standard error, so that a pipe or
    a file gets the answer alone.

    Args:
        tools: functions that the model may call; calls are shown by name and arguments.
        thinking: the prompt ends inside <think>.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], thinking: bool) -> None:
        self._parser = ReplyParser(tools, thinking)
        self._terminal = sys.stdout.isatty()
        self._thinking = self._answered = False

    def push(self, text: str) -> None:
        """The next piece of the reply."""
        self._show(self._parser.push(text))

    def finish(self) -> None:
        """The reply has ended."""
        self._show(self._parser.finish())
        self._end_thinking()
        print()

    def _show(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ReasoningDelta):
                self._think(event.text)
            elif isinstance(event, ContentDelta):
                self._answer(event.text)
            elif isinstance(event, ToolCall):
                arguments = json.dumps(event.arguments, ensure_ascii=False)
                self._answer(("\n" if self._answered else "") + f"{event.name} {arguments}")

    def _think(self, text: str) -> None:
        stream, text = sys.stdout if self._terminal else sys.stderr, shown_to_people(text)
        print(_DIM + text if self._terminal and not self._thinking else text, end="", flush=True, file=stream)
        self._thinking = True

    def _end_thinking(self) -> None:
        if self._thinking:
            print(f"{_PLAIN}\n" if self._terminal else "", file=sys.stdout if self._terminal else sys.stderr)
        self._thinking = False

    def _answer(self, text: str) -> None:
        self._end_thinking()
        print(shown_to_people(text), end="", flush=True)
        self._answered = True
