"""A request in progress, seen by its client: deltas as they come, in any thread or event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from deltart.errors import DeltaRTError, GenerationError
from deltart.runtime.backends.slots import TokenLogprobs
from deltart.runtime.sequence import Delta, FinishReason, Usage


@dataclass
class Completion:
    """One whole reply."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    stop: str | int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    @property
    def drawn(self) -> list[int]:
        """`tokens` and the token that ended it, if one did."""
        return [*self.tokens, *([self.stop] if isinstance(self.stop, int) else [])]

    def add(self, delta: Delta) -> None:
        """Append what a step added."""
        self.tokens += delta.tokens
        self.text += delta.text
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self.finish_reason, self.stop = delta.finish_reason, delta.stop


class Handle:
    """The deltas of a request, to be read once: by iterating, in a thread or with `async for`, or by `result`.

    Args:
        replies: how many replies the request has.
        cancel: called to end the request.

    Attributes:
        usage: of all its replies so far.
        prompt_logprobs: of the prompt's tokens but the first, where asked for; there before the first delta.
    """

    def __init__(self, replies: int, usage: Usage, cancel: Callable[[], None]) -> None:
        self.usage = usage
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.replies = replies
        self._left, self._cancel = replies, cancel
        self._deltas: deque[Delta] = deque()
        self._error: DeltaRTError | None = None
        self._changed = threading.Condition()
        self._over = threading.Event()  # apart, so that who waits for the end is not woken by every delta
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def cancel(self) -> None:
        """End the request: its slot is free within one step. Does nothing once it has ended."""
        self._cancel()

    def put(self, delta: Delta, error: DeltaRTError | None = None) -> None:
        """Hand out a delta; the engine's side."""
        with self._changed:
            self._deltas.append(delta)
            self._left -= delta.finish_reason is not None
            self._error = self._error or error
            self._changed.notify_all()
            if not self._left:
                self._over.set()
            waiter = self._waiter
        if waiter is not None:
            loop, event = waiter
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the loop has closed: its client is gone
                self._cancel()

    def __iter__(self) -> Iterator[Delta]:
        """Deltas until every reply has ended.

        Raises:
            DeltaRTError: what ended a reply with the reason "error".
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._deltas or not self._left)
                ready = self._take()
            yield from ready
            if not ready:
                self._raise()
                return

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """As `__iter__`, from an event loop."""
        event = asyncio.Event()
        with self._changed:
            self._waiter = (asyncio.get_running_loop(), event)
        while True:
            event.clear()
            with self._changed:
                ready, over = self._take(), not self._left
            for delta in ready:
                yield delta
            if ready:
                continue
            if over:
                self._raise()
                return
            await event.wait()

    def result(self, timeout: float | None = None) -> list[Completion]:
        """Every reply, whole.

        Args:
            timeout: seconds to wait at most.

        Raises:
            DeltaRTError: a reply ended with an error.
            TimeoutError: they did not end in time; the request goes on.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"the request did not end within {timeout} s")
        with self._changed:
            ready = self._take()
        self._raise()
        replies = [Completion(usage=self.usage) for _ in range(self.replies)]
        for delta in ready:
            replies[delta.index].add(delta)
        return replies

    def _take(self) -> list[Delta]:
        ready = list(self._deltas)
        self._deltas.clear()
        return ready

    def _raise(self) -> None:
        if self._error is not None:
            error = self._error
            raise error if isinstance(error, GenerationError) else GenerationError(error.found, error.expected)
