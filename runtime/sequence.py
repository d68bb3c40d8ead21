"""A request, and one reply to it on its way: ids, status, text, and the one place that decides that it has ended."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import Literal

import numpy as np

from deltart.errors import DeltaRTError
from deltart.runtime.backends.slots import Drawn, Row, Snapshot, TokenLogprobs
from deltart.runtime.sampling.constraint import CompiledStructure, Constraint
from deltart.runtime.sampling.params import SamplingParams
from deltart.runtime.sampling.sampler import Sampler
from deltart.runtime.text.stops import StopMatcher
from deltart.runtime.text.tokenizer import Detokenizer
from deltart.runtime.vision.keys import prompt_keys
from deltart.runtime.vision.medium import Span
from deltart.runtime.vision.positions import positions, shift

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        ids: tokens of the prompt, at least one.
        params: how tokens are drawn and when a reply ends.
        n: replies to one prompt; they share its prefill. Reply i draws with the seed + i.
        structure: what the reply must look like, from Engine.compile; None for any text.
        logprobs: None for none, else how many of the likeliest tokens come with each token's log-probability.
        prompt_logprobs: the same for the prompt's tokens but the first.
        deadline: `time.monotonic()` after which replies end as they are; None for never.
        cache_salt: prefixes are shared among requests of one salt only.
        thinking: the prompt ends inside <think>: a structure begins after </think>.
        media: where pictures and videos lie among `ids`, in order.
    """

    ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    structure: CompiledStructure | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    deadline: float | None = None
    cache_salt: str = ""
    thinking: bool = False
    media: tuple[Span, ...] = ()

    @cached_property
    def keys(self) -> tuple[int, ...]:
        """What stands for `ids` where prefixes are compared: pictures by their content."""
        return prompt_keys(self.ids, self.media)

    @cached_property
    def positions(self) -> np.ndarray:
        """int64 [3, number of ids]: time, row and column of each."""
        return positions(len(self.ids), self.media)

    @property
    def rope_shift(self) -> int:
        """What positions after the prompt are ahead of the number of tokens: 0 or less."""
        return shift(len(self.ids), self.media)


@dataclass(frozen=True)
class Delta:
    """What a step added to one reply.

    Attributes:
        index: which of the request's n replies.
        tokens: new tokens; a token that ends the reply is not among them.
        text: text that is certain: whole characters, nothing that may become a stop string.
        logprobs: of `tokens`, where they were asked for.
        finish_reason: why the reply has ended; None while it goes on.
        stop: the stop string or token id that ended it, if one did.
    """

    index: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | int | None = None


@dataclass
class Usage:
    """Tokens and seconds of a request, over all its replies. Drafts are counted apart."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second that were not found in the cache."""
        seconds = self.first_token_seconds - self.queue_seconds
        return (self.prompt_tokens - self.cached_tokens) / seconds if seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first."""
        seconds = self.total_seconds - self.first_token_seconds
        return (self.completion_tokens - 1) / seconds if seconds > 0 and self.completion_tokens > 1 else 0.0


class Status(Enum):
    """Where a sequence is."""

    WAITING = auto()  # has no slot; `parked` holds its state if it was preempted
    PREFILL = auto()  # has a slot and part of its prompt in it
    RUNNING = auto()  # takes part in the steps
    FINISHED = auto()


@dataclass
class Sequence:
    """One reply on its way.

    Attributes:
        request, index: what it replies to, and which reply it is.
        sampler: draws its tokens.
        budget: most tokens it may have; `params.max_new_tokens` cut to what fits.
        ends: tokens that end it; empty under `ignore_eos`.
        past: tokens in its state.
        tokens: what was drawn, without the token that ended it.
        ended_by: the token that ended it, if one did; it belongs to the conversation.
        parked: its state while it waits after a preemption, or for a slot beside the reply that read its prompt.
        error: what ended it with the reason "error".
    """

    request: Request
    index: int
    sampler: Sampler
    budget: int
    ends: frozenset[int]
    detokenizer: Detokenizer
    stops: StopMatcher
    usage: Usage
    constraint: Constraint | None = None
    end_thinking: int | None = None
    status: Status = Status.WAITING
    slot: int | None = None
    past: int = 0
    row: Row | None = None
    parked: Snapshot | None = None
    tokens: list[int] = field(default_factory=list)
    ended_by: int | None = None
    finish_reason: FinishReason | None = None
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    error: DeltaRTError | None = None
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.ids

    @property
    def length(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt) + len(self.tokens)

    def ids(self) -> list[int]:
        """Prompt and reply, the token that ended it included."""
        return [*self.prompt, *self._drawn()]

    def keys(self) -> list[int]:
        """The same as prefixes are compared: pictures by their content."""
        return [*self.request.keys, *self._drawn()]

    def push(self, drawn: Drawn) -> Delta:
        """Take the tokens that a step drew, up to where the reply ends, and say what is new."""
        self.usage.draft_tokens += drawn.drafted
        self.usage.accepted_tokens += drawn.accepted
        kept, text = list[int](), ""
        for token in drawn.tokens:
            if token in self.ends:
                self.ended_by = token
                return self._ended("stop", kept, text + self._flush(), drawn, token)
            kept.append(token)
            self._count(token)
            piece, hit = self.stops.push(self.detokenizer.push(token))
            text += piece
            if hit:
                return self._ended("stop", kept, text, drawn, self.stops.matched)
            if len(self.tokens) == self.budget:
                return self._ended("length", kept, text + self._flush(), drawn, None)
        return Delta(self.index, tuple(kept), text, drawn.logprobs[: len(kept)])

    def end(self, reason: FinishReason) -> Delta:
        """End it from outside."""
        return self._ended(reason, (), self._flush(), Drawn(()), None)

    def _drawn(self) -> list[int]:
        return [*self.tokens, *([] if self.ended_by is None else [self.ended_by])]

    def _count(self, token: int) -> None:
        self.tokens.append(token)
        self.usage.completion_tokens += 1
        if self.end_thinking is not None:
            self.usage.reasoning_tokens += 1
            if token == self.end_thinking:
                self.end_thinking = None

    def _flush(self) -> str:
        """The text held back, once no more tokens come; it may complete a stop string, which then hides its rest."""
        text, hit = self.stops.push(self.detokenizer.finish())
        return text if hit else text + self.stops.finish()

    def _ended(
        self, reason: FinishReason, kept: Iterable[int], text: str, drawn: Drawn, stop: str | int | None
    ) -> Delta:
        self.finish_reason, tokens = reason, tuple(kept)
        self.usage.total_seconds = time.monotonic() - self.arrived
        return Delta(self.index, tokens, text, drawn.logprobs[: len(tokens)], reason, stop)
