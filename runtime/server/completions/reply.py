"""Answers of /v1/completions, whole or as chunks."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from deltart.runtime.backends.slots import TokenLogprobs
from deltart.runtime.sequence import Usage
from deltart.runtime.server.chat.reply import CompletionDetails, PromptDetails, UsageBody
from deltart.runtime.server.replies import Content, Step
from deltart.runtime.text.tokenizer import Tokenizer


class TextLogprobs(msgspec.Struct, kw_only=True):
    """Parallel lists over tokens. The first token of an echoed prompt has no logprob: nothing precedes it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class TextCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody | UnsetType | None = UNSET
    system_fingerprint: str | None = None


class TextReply:
    """One reply's choice, fed by its steps: as a chunk of each step, and as a whole.

    Args:
        index: of the choice.
        tokenizer: for logprobs.
        logprobs: they were asked for.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, logprobs: bool) -> None:
        self.index = index
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._texts: list[str] = []
        self._entries: list[tuple[int, TokenLogprobs | None]] = []
        self._offset = 0
        self._end: tuple[str | None, str | int | None] = (None, None)

    def echo(self, ids: tuple[int, ...], logprobs: list[TokenLogprobs | None]) -> TextChoice:
        """The choice of the prompt itself, for requests that want it back."""
        entries = [(token, _at(logprobs, i, len(ids))) for i, token in enumerate(ids)]
        return self._choice(self._tokenizer.decode(ids, skip_special=False), entries)

    def of(self, step: Step) -> TextChoice:
        """The choice of what a step adds."""
        text = "".join(part.text for part in step.parts if isinstance(part, Content))
        if step.end is not None:
            self._end = (step.end.reason, step.end.stop)
        choice = self._choice(text, [(entry.token, entry) for entry in step.logprobs])
        choice.finish_reason, choice.stop_reason = self._end
        return choice

    def whole(self) -> TextChoice:
        """The choice of all that came."""
        choice = TextChoice(index=self.index, text="".join(self._texts), logprobs=self._lists(self._entries, 0))
        choice.finish_reason, choice.stop_reason = self._end
        return choice

    def _choice(self, text: str, entries: list[tuple[int, TokenLogprobs | None]]) -> TextChoice:
        logprobs = self._lists(entries, self._offset)
        self._texts.append(text)
        self._entries += entries
        self._offset += sum(len(self._text(token)) for token, _ in entries)
        return TextChoice(index=self.index, text=text, logprobs=logprobs)

    def _lists(self, entries: list[tuple[int, TokenLogprobs | None]], offset: int) -> TextLogprobs | None:
        if not self._logprobs:
            return None
        offsets = []
        for token, _ in entries:
            offsets.append(offset)
            offset += len(self._text(token))
        return TextLogprobs(
            tokens=[self._text(token) for token, _ in entries],
            token_logprobs=[None if entry is None else entry.logprob for _, entry in entries],
            top_logprobs=[self._top(entry) for _, entry in entries],
            text_offset=offsets,
        )

    def _top(self, entry: TokenLogprobs | None) -> dict[str, float] | None:
        if entry is None:
            return None
        texts = {self._text(token): logprob for token, logprob in reversed(entry.top)}
        return texts | {self._text(entry.token): entry.logprob}

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")


def _at(logprobs: list[TokenLogprobs | None], i: int, tokens: int) -> TokenLogprobs | None:
    """The entry of prompt token i; the list may or may not hold one for the first."""
    place = i - (tokens - len(logprobs))
    return logprobs[place] if 0 <= place < len(logprobs) else None


def added(usages: list[Usage]) -> UsageBody:
    """The usage of several prompts together."""
    prompt, completion = sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)
    return UsageBody(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(u.cached_tokens for u in usages)),
        completion_tokens_details=CompletionDetails(reasoning_tokens=sum(u.reasoning_tokens for u in usages)),
    )
