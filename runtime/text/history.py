"""Token-exact history: an assistant's message that comes back is encoded as the tokens it was generated as.

A prompt repeats the replies before it as text. Encoding that text anew need not give the tokens that were drawn: splits
can differ, and a client's JSON library or a template writes arguments and blanks in its own way. Then the prompt parts
from the state that is kept, inside the reply. So replies are remembered by what the template makes of them, and their
own tokens are put in the place of that text.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from deltart.runtime.text.reply import ToolCall, parse_reply
from deltart.runtime.text.tokenizer import Tokenizer

HEADER, END = "<|im_start|>assistant\n", "<|im_end|>"
MAX_REPLIES = 4096


class TokenHistory:
    """Replies by the text of their message, for one tokenizer. Thread-safe.

    Texts of messages are told apart by the family's own marks; a tokenizer that lacks them encodes as it always does.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.id_of("<|im_start|>")
        self._marked = self._start is not None and tokenizer.id_of(END) is not None
        self._replies: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered conversation, known replies as they were generated."""
        pieces = self.pieces(text)
        return [i for piece in pieces for i in (self._tokenizer.encode(piece) if isinstance(piece, str) else piece)]

    def pieces(self, text: str) -> list[str | tuple[int, ...]]:
        """A rendered conversation cut at known replies, which are ids as they were generated."""
        pieces: list[str | tuple[int, ...]] = []
        begin = 0
        for start, end in self._messages(text):
            known = self._known(text[start:end])
            if known is not None:
                pieces += [text[begin:start], known]
                begin = end
        return [*pieces, text[begin:]]

    def remember(
        self, rendered: str, prompt: Sequence[int], reply: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()
    ) -> bool:
        """Note a reply to `prompt`; `rendered` is the conversation with the reply as its last message,
        `tools` are the functions that it may call.

        Returns:
            whether it was noted: only what says the same as the rendered message is, so that no prompt changes its
            meaning.
        """
        messages = self._messages(rendered)
        if not messages or self._start is None or self._start not in prompt:
            return False
        start, end = messages[-1]
        first = len(prompt) - 1 - list(reversed(prompt)).index(self._start)
        ids = (*prompt[first:], *reply)
        message = rendered[start:end]
        if not _same(message, self._tokenizer.decode(ids, skip_special=False), tools):
            return False
        with self._lock:
            self._replies[message] = ids
            self._replies.move_to_end(message)
            while len(self._replies) > MAX_REPLIES:
                self._replies.popitem(last=False)
        return True

    def _known(self, message: str) -> tuple[int, ...] | None:
        with self._lock:
            return self._replies.get(message)

    def _messages(self, text: str) -> list[tuple[int, int]]:
        """Places of the assistant's whole messages, from the header to before the end mark."""
        found: list[tuple[int, int]] = []
        start = text.find(HEADER) if self._marked else -1
        while start >= 0:
            end = text.find(END, start)
            if end < 0:
                break
            found.append((start, end))
            start = text.find(HEADER, end)
        return found


def _same(message: str, generated: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two messages say the same but for blanks around their parts and the spelling of arguments."""
    a, b = (_parts(text.removeprefix(HEADER), tools) for text in (message, generated))
    return a == b


def _parts(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, str, tuple[ToolCall, ...]]:
    reply = parse_reply(text, tools, thinking="</think>" in text)
    return reply.reasoning.strip(), reply.content.strip(), reply.tool_calls
